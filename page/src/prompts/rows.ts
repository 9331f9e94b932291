// One prompt of a list, with the settings that it alone has. The checks are those of the command line (docs/prompts.md).

export interface PromptRow {
  prompt: string
  negative_prompt?: string
  seed?: number
  id?: string
  images?: number
  width?: number
  height?: number
  steps?: number
  guidance_scale?: number
}

/** A mistake in a list; `line` is where it stands, counted from 1. */
export interface Problem {
  line: number
  message: string
}

export const COLUMNS = [
  'prompt',
  'negative_prompt',
  'seed',
  'id',
  'images',
  'width',
  'height',
  'steps',
  'guidance_scale',
] as const
export type Column = (typeof COLUMNS)[number]

/** Columns that the command line reads and the page cannot. */
export const FILE_COLUMNS = ['image', 'mask_image', 'control_image', 'strength', 'lora']

const WHOLE: readonly string[] = ['seed', 'images', 'width', 'height', 'steps']
const NOT_IN_NAMES = /[/\\:*?"<>|\x00-\x1f\x7f]/
const LONGEST_ID = 150 // bytes, as on the command line
const LONGEST_SHOWN = 80 // characters of a wrong value that a message quotes
const SURROGATE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/

/** Return a value as a message quotes it. */
export function shown(value: unknown): string {
  const text = typeof value === 'string' ? `'${value}'` : JSON.stringify(value)
  return text.length > LONGEST_SHOWN ? `${text.slice(0, LONGEST_SHOWN - 1)}…` : text
}

function isEmpty(value: unknown): boolean {
  return value === undefined || value === null || (typeof value === 'string' && !value.trim())
}

function text(name: string, value: unknown): string {
  if (typeof value !== 'string') throw new Error(`${name} is ${kind(value)}; it must be a string.`)
  if (SURROGATE.test(value)) throw new Error(`${name} contains an invalid surrogate; remove it.`)
  return value.trim()
}

function kind(value: unknown): string {
  if (value === null || value === undefined) return 'empty'
  return Array.isArray(value) ? 'a list' : typeof value === 'object' ? 'an object' : `a ${typeof value}`
}

function number(name: string, value: unknown): number {
  const found = typeof value === 'string' ? Number(value.trim()) : value
  if (typeof found !== 'number' || Number.isNaN(found)) {
    throw new Error(`${name} ${shown(value)} is not a number; correct it.`)
  }
  const least = name === 'seed' || name === 'guidance_scale' ? 0 : 1
  if (WHOLE.includes(name) ? !Number.isInteger(found) || found < least : !Number.isFinite(found) || found < least) {
    const use = WHOLE.includes(name) ? `a whole number of ${least} or more` : `${least} or more`
    throw new Error(`${name} ${shown(value)} is out of range: use ${use}.`)
  }
  if (found > Number.MAX_SAFE_INTEGER) {
    throw new Error(`${name} ${shown(value)} is larger than a browser keeps exactly: use at most ${Number.MAX_SAFE_INTEGER}.`)
  }
  return found
}

function id(value: unknown): string {
  const name = typeof value === 'number' ? String(value) : text('id', value)
  const found = NOT_IN_NAMES.exec(name)
  if (found) throw new Error(`id ${shown(name)} cannot name a file: leave out ${shown(found[0])}.`)
  if (/^[.~]|\.$/.test(name)) {
    throw new Error(`id ${shown(name)} cannot name a file: begin and end it with a letter or a digit.`)
  }
  if (new TextEncoder().encode(name).length > LONGEST_ID) {
    throw new Error(`id ${shown(name)} cannot name a file: use at most ${LONGEST_ID} bytes.`)
  }
  return name
}

/** Return the row with these values, or throw an error with one sentence. */
export function rowOf(values: Record<string, unknown>): PromptRow {
  const row: PromptRow = { prompt: text('the prompt', values.prompt) }
  if (!row.prompt) throw new Error('the prompt is empty; give it some text, or delete the row.')
  for (const column of FILE_COLUMNS) {
    if (!isEmpty(values[column])) {
      throw new Error(`the page cannot use the column ${column}: remove it, or use cotrunk generate.`)
    }
  }
  for (const column of COLUMNS) {
    const value = values[column]
    if (column === 'prompt' || isEmpty(value)) continue
    if (column === 'negative_prompt') row.negative_prompt = text(column, value)
    else if (column === 'id') row.id = id(value)
    else row[column] = number(column, value)
  }
  if ('id' in values && row.id === undefined) throw new Error('the id is empty; give each row an id.')
  return row
}

/** Return the problems of ids that occur twice or that only some rows have. */
export function idProblems(rows: readonly { row: PromptRow; line: number }[]): Problem[] {
  const seen = new Map<string, number>()
  const problems: Problem[] = []
  const having = rows.find(({ row }) => row.id !== undefined)
  for (const { row, line } of rows) {
    if (row.id === undefined) {
      if (having) {
        const message = `the row has no id, and line ${having.line} has one; give all rows an id, or none.`
        return [...problems, { line, message }]
      }
      continue
    }
    const key = row.id.normalize('NFC').toLowerCase()
    const first = seen.get(key)
    if (first === undefined) seen.set(key, line)
    else problems.push({ line, message: `id ${shown(row.id)} is also that of line ${first}; change one of them.` })
  }
  return problems
}

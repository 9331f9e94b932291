// Prompt lists as text, tables or JSON lines, read as the command line reads them. Each mistake is named with its line.

import Papa from 'papaparse'
import { COLUMNS, FILE_COLUMNS, idProblems, rowOf, shown, type Problem, type PromptRow } from './rows'

export type Format = 'text' | 'csv' | 'tsv' | 'jsonl'

export interface PromptList {
  format: Format
  rows: PromptRow[]
  /** The line of each row. */
  lines: number[]
  problems: Problem[]
  comments: number
  /** Columns that nothing uses. */
  unused: string[]
}

type Found = { line: number; values: Record<string, unknown> }

interface Reading {
  found: Found[]
  problems: Problem[]
  comments: number
  unused: Set<string>
}

const LONGEST = 5_000_000 // characters; a longer text freezes the browser before the service refuses it

/** Return the format that a file's name or the first line of a pasted text suggests. */
export function formatOf(text: string, name = ''): Format {
  const suffix = /\.(\w+)$/.exec(name)?.[1]?.toLowerCase()
  if (suffix === 'csv' || suffix === 'tsv') return suffix
  if (suffix === 'jsonl' || suffix === 'ndjson') return 'jsonl'
  const first = linesOf(text).find((line) => line.trim())?.trim() ?? ''
  if (first.startsWith('{') && isObject(first)) return 'jsonl'
  const isTable = (delimiter: string) => cells(first, delimiter).includes('prompt')
  if (first.includes('\t') && isTable('\t')) return 'tsv'
  return isTable(',') ? 'csv' : 'text'
}

/** Read a whole list. */
export function parsePrompts(text: string, format: Format): PromptList {
  const reading: Reading = { found: [], problems: [], comments: 0, unused: new Set() }
  if (text.length > LONGEST) {
    reading.problems.push({ line: 1, message: `the list is longer than ${LONGEST.toLocaleString('en')} characters: divide it.` })
  } else if (format === 'text') readText(text, reading)
  else if (format === 'jsonl') readJsonLines(text, reading)
  else readTable(text, format === 'tsv' ? '\t' : ',', reading)

  const read: { row: PromptRow; line: number }[] = []
  for (const { line, values } of reading.found) {
    if (Object.values(values).every((value) => typeof value === 'string' && !value.trim())) continue
    try {
      read.push({ row: rowOf(values), line })
    } catch (error) {
      reading.problems.push({ line, message: (error as Error).message })
    }
  }
  const problems = [...reading.problems, ...(reading.problems.length ? [] : idProblems(read))]
  return {
    format,
    rows: read.map(({ row }) => row),
    lines: read.map(({ line }) => line),
    problems: problems.sort((a, b) => a.line - b.line),
    comments: reading.comments,
    unused: [...reading.unused],
  }
}

/** Return a list as JSON lines, from which `parsePrompts` reads the same rows. */
export function toJsonLines(rows: readonly PromptRow[]): string {
  return rows.map((row) => JSON.stringify(row)).join('\n')
}

/** Return a list as plain text where the rows are prompts alone, else as JSON lines. */
export function toText(rows: readonly PromptRow[]): string {
  const isPlain = rows.every((row) => Object.keys(row).length === 1 && !row.prompt.includes('\n'))
  const text = rows.map((row) => (row.prompt.startsWith('#') ? `\\${row.prompt}` : row.prompt)).join('\n')
  return isPlain && formatOf(text) === 'text' ? text : toJsonLines(rows)
}

function linesOf(text: string): string[] {
  // Not at form feeds or U+2028, which a prompt may contain.
  const lines = text.replace(/^\ufeff/, '').split(/\r\n|\r|\n/)
  return lines.at(-1) === '' ? lines.slice(0, -1) : lines
}

function cells(line: string, delimiter: string): string[] {
  return line.split(delimiter).map((cell) => cell.trim().replace(/^"|"$/g, '').toLowerCase())
}

function isObject(line: string): boolean {
  try {
    const value: unknown = JSON.parse(line)
    return typeof value === 'object' && value !== null && !Array.isArray(value)
  } catch {
    return false
  }
}

function readText(text: string, reading: Reading): void {
  linesOf(text).forEach((line, index) => {
    const prompt = line.trim()
    if (prompt.startsWith('#')) reading.comments += 1
    else reading.found.push({ line: index + 1, values: { prompt: prompt.startsWith('\\#') ? prompt.slice(1) : prompt } })
  })
}

function readJsonLines(text: string, reading: Reading): void {
  linesOf(text).forEach((content, index) => {
    const line = index + 1
    if (!content.trim()) return
    try {
      const record: unknown = JSON.parse(content)
      if (typeof record !== 'object' || record === null || Array.isArray(record)) {
        reading.found.push({ line, values: { prompt: record } })
        return
      }
      const keys = Object.keys(record)
      const chosen = choose(keys, reading)
      const values = Object.fromEntries([...chosen].map(([field, key]) => [field, (record as Record<string, unknown>)[keys[key]!]]))
      reading.found.push({ line, values })
    } catch (error) {
      const isSyntax = error instanceof SyntaxError
      reading.problems.push({ line, message: isSyntax ? 'invalid JSON; correct that line.' : (error as Error).message })
    }
  })
}

function readTable(text: string, delimiter: string, reading: Reading): void {
  const source = text.replace(/^\ufeff/, '')
  const quoteChar = delimiter === '\t' && hasPlainQuotes(source) ? '\0' : '"'
  let line = 1
  let position = 0
  let header: string[] | null = null
  let chosen = new Map<string, number>()
  Papa.parse<string[]>(source, {
    delimiter,
    quoteChar,
    step: ({ data: row, errors, meta }, parser) => {
      const start = line
      line += (source.slice(position, meta.cursor).match(/\r\n|\r|\n/g) ?? []).length
      position = meta.cursor
      const quote = errors.find(({ type }) => type === 'Quotes')
      if (quote) {
        const why = quote.code === 'MissingQuotes' ? 'a quote is never closed' : 'text follows a closing quote'
        reading.problems.push({ line: start, message: `damaged table (${why}); correct that line.` })
        parser.abort()
        return
      }
      try {
        if (header === null) {
          header = row
          chosen = choose(row, reading)
        } else if (row.length > 1 || row[0]?.trim()) reading.found.push({ line: start, values: valuesOf(row, header, chosen, delimiter) })
      } catch (error) {
        reading.problems.push({ line: start, message: (error as Error).message })
        if (!chosen.size) parser.abort()
      }
    },
  })
}

/** Return whether the quotes of a tab-separated table are text: read as quoting, they would damage it. */
function hasPlainQuotes(source: string): boolean {
  const { errors } = Papa.parse(source, { delimiter: '\t' })
  const lines = linesOf(source).filter((line) => line)
  return errors.some(({ type }) => type === 'Quotes') && new Set(lines.map((line) => line.split('\t').length)).size === 1
}

function valuesOf(row: string[], header: string[], chosen: Map<string, number>, delimiter: string): Record<string, unknown> {
  if ((chosen.get('prompt') ?? 0) >= row.length) {
    throw new Error(`the row has ${row.length} of ${header.length} columns and lacks the prompt; correct that line.`)
  }
  const named = header.findLastIndex((cell) => cell.trim()) + 1
  if (row.slice(named).some((cell) => cell.trim())) {
    const kind = delimiter === '\t' ? 'tab' : 'comma'
    throw new Error(
      `the row has more cells than the header (${named}); put cells that contain a ${kind} in double quotes.`,
    )
  }
  return Object.fromEntries([...chosen].filter(([, index]) => index < row.length).map(([field, index]) => [field, row[index]]))
}

/** Return the place of each field among the columns. Upper and lower case may differ if only one column matches. */
function choose(available: string[], reading: Reading): Map<string, number> {
  const chosen = new Map<string, number>()
  for (const field of [...COLUMNS, ...FILE_COLUMNS]) {
    const equal = available.flatMap((name, index) => (name === field ? [index] : []))
    if (equal.length > 1) throw new Error(`there are several columns ${shown(field)}: keep one of them.`)
    const alike = available.flatMap((name, index) => (name.trim().toLowerCase() === field ? [index] : []))
    const found = equal[0] ?? (alike.length === 1 ? alike[0] : undefined)
    if (found !== undefined) chosen.set(field, found)
  }
  if (!chosen.has('prompt')) {
    const names = available.map(shown).join(', ') || 'none'
    throw new Error(`there is no column 'prompt': rename one of the columns (${names}).`)
  }
  const used = new Set(chosen.values())
  available.forEach((name, index) => {
    if (name.trim() && !used.has(index)) reading.unused.add(name.trim())
  })
  return chosen
}

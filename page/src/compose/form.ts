// The settings of the form as numbers, checked before anything is sent.

import type { Model } from '../job/model'
import type { PromptRow } from '../prompts/rows'
import type { Form } from './draft.svelte'

export type Field = 'steps' | 'guidance' | 'width' | 'height' | 'seed' | 'images'

const LEAST: Record<Field, number> = { steps: 1, guidance: 0, width: 1, height: 1, seed: 0, images: 1 }

/** Return what is wrong with a field; null where it is right or empty. */
export function wrong(field: Field, text: string, model: Model | undefined): string | null {
  if (!text.trim()) return null
  const value = Number(text)
  if (field === 'guidance') {
    return Number.isFinite(value) && value >= 0 ? null : 'Use a number of 0 or more.'
  }
  if (!Number.isSafeInteger(value) || value < LEAST[field]) return `Use a whole number of ${LEAST[field]} or more.`
  const multiple = model?.multiple ?? 1
  const isSize = field === 'width' || field === 'height'
  return isSize && value % multiple ? `Use a multiple of ${multiple}, such as ${multiple * Math.max(1, Math.round(value / multiple))}.` : null
}

function numberOf(text: string): number | null {
  return text.trim() ? Number(text) : null
}

/** Return the number of images of a list. */
export function imagesOf(rows: readonly PromptRow[], form: Form): number {
  const own = wrong('images', form.images, undefined) ? 1 : (numberOf(form.images) ?? 1)
  return rows.reduce((sum, row) => sum + (row.images ?? own), 0)
}

/** What one setting is for a list or a row; undefined where it says nothing. */
export interface Settings {
  n?: number
  size?: string
  steps?: number
  seed?: number
  negative_prompt?: string
  guidance_scale?: number
}

/** Return the settings of the whole list. */
export function settingsOf(form: Form, model: Model | undefined): Settings {
  return given({
    n: numberOf(form.images),
    size: sizeOf(numberOf(form.width), numberOf(form.height), model),
    steps: numberOf(form.steps),
    seed: numberOf(form.seed),
    negative_prompt: form.negative.trim() || null,
    guidance_scale: numberOf(form.guidance),
  })
}

/** Return the settings that a row has of its own. Where it says one side only, the other one is that of the list. */
export function ownSettings(row: PromptRow, form: Form, model: Model | undefined): Settings {
  const hasSize = row.width !== undefined || row.height !== undefined
  return given({
    n: row.images,
    size: hasSize ? sizeOf(row.width ?? numberOf(form.width), row.height ?? numberOf(form.height), model) : null,
    steps: row.steps,
    seed: row.seed,
    negative_prompt: row.negative_prompt,
    guidance_scale: row.guidance_scale,
  })
}

/** Return a size; a side that nothing says is the model's own. */
function sizeOf(width: number | null, height: number | null, model: Model | undefined): string | null {
  if (width === null && height === null) return null
  return `${width ?? model?.width ?? height}x${height ?? model?.height ?? width}`
}

function given(settings: Record<string, unknown>): Settings {
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== null && value !== undefined))
}

/** Return a sentence of the service about one of the prompts with the line of the list where it stands. */
export function withLine(message: string, lines: readonly number[]): string {
  return message.replace(/^prompts\.(\d+)(\.| )/, (whole, place: string, end: string) => {
    const line = lines[Number(place)]
    return line === undefined ? whole : `Line ${line}: ${end === '.' ? '' : 'the prompt '}`
  })
}

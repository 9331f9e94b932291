// What the page knows about a job. `api/wire.ts` makes it from the answers of the service.

import type { Branch } from '../tree/layout'

export type ImageState = 'waiting' | 'running' | 'done' | 'failed' | 'cancelled'

/** Denoiser rows. A row that n images share counts 1/n for each of them. */
export interface Rows {
  independent: number
  computed: number
  sharing: number
  skipping: number
  guidance: number
  replay: number
}

export interface JobImage {
  id: string
  number: number
  name: string | null // the id of its row in the prompt list
  prompt: string
  negativePrompt: string | null
  state: ImageState
  reason: string | null
  seed: number | null
  width: number | null
  height: number | null
  steps: number | null
  guidanceScale: number | null
  model: string | null
  group: string | null
  sharedWith: string[]
  rows: Rows | null
  /** Seconds from the acceptance of the job until the image's group was formed. */
  waited: number | null
  /** Seconds from then until the image was done. */
  seconds: number | null
  trunk: { hit: boolean; branch: number } | null
  /** Address of the image or of its latest preview. */
  address: string | null
}

export interface JobGroup {
  id: string
  /** Also those of other requests in the same group. */
  images: string[]
  /** Over indices into `images`; null for an image that runs alone. */
  tree: Branch | null
  trunk: { hit: boolean; branch: number } | null
}

export interface JobSummary {
  id: string
  state: ImageState
  created: number
  finished: number | null
  counts: Record<ImageState, number>
  title: string // its first prompt
}

export interface PlannedGroup {
  images: number[]
  tree: Branch // over image numbers
  similarity: number | null
  rows: Rows
}

export interface Plan {
  groups: PlannedGroup[]
  rows: Rows
  seconds: number | null
  steps: number
}

export interface Model {
  id: string
  width: number | null
  height: number | null
  multiple: number
  steps: number | null
  guidanceScale: number | null
  takesNegativePrompt: boolean
  note: string | null
  isReady: boolean
}

export const NO_ROWS: Rows = { independent: 0, computed: 0, sharing: 0, skipping: 0, guidance: 0, replay: 0 }

export function addRows(all: readonly (Rows | null)[]): Rows {
  const sum = { ...NO_ROWS }
  for (const rows of all) {
    if (rows) for (const name of Object.keys(sum) as (keyof Rows)[]) sum[name] += rows[name]
  }
  return sum
}

/** Return the fraction of the rows that was saved, 0 to 1. */
export function saving(rows: Rows): number {
  return rows.independent ? 1 - rows.computed / rows.independent : 0
}

/** Return "12 rows by sharing and 30 by skipping", or nothing where no row was saved. */
export function ways(rows: Rows, amount: (rows: number) => string): string[] {
  const names: [keyof Rows, string][] = [
    ['sharing', 'sharing'],
    ['replay', 'stored trunks'],
    ['skipping', 'skipping'],
    ['guidance', 'steps without guidance'],
  ]
  return names.filter(([name]) => rows[name] > 0).map(([name, way]) => `${amount(rows[name])} by ${way}`)
}

/** Return the seconds during which at least one of the images was being generated. */
export function busySeconds(images: readonly Pick<JobImage, 'waited' | 'seconds'>[]): number | null {
  const spans = images
    .flatMap(({ waited, seconds }) => (waited === null || seconds === null ? [] : [[waited, waited + seconds] as const]))
    .sort((a, b) => a[0] - b[0])
  let [sum, end] = [0, 0]
  for (const [from, to] of spans) {
    sum += Math.max(0, to - Math.max(from, end))
    end = Math.max(end, to)
  }
  return spans.length ? sum : null
}

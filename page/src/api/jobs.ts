// What the page asks the service.

import type { Form } from '../compose/draft.svelte'
import { imagesOf } from '../compose/form'
import type { JobSummary, Model, Plan } from '../job/model'
import type { Snapshot } from '../job/view.svelte'
import type { PromptRow } from '../prompts/rows'
import { get, post } from './client'
import type { components } from './openapi'
import { bodyOf, modelOf, planOf, snapshotOf, summaryOf } from './wire'

type Schemas = components['schemas']

export interface Planning {
  plan: Plan
  /** The prompt of each image. */
  prompts: string[]
}

export interface Page {
  jobs: JobSummary[]
  /** The job after which the next page begins; null where this is the last one. */
  next: string | null
}

const PREVIEWS = 2 // previews of each image while it is generated
const PAGE = 30 // jobs that are loaded at once

export async function loadModels(): Promise<Model[]> {
  return (await get<Schemas['ModelList']>('models')).data.map(modelOf)
}

export async function preview(
  model: Model | undefined,
  rows: readonly PromptRow[],
  form: Form,
  signal: AbortSignal,
): Promise<Planning> {
  const plan = planOf(await post<Schemas['PlanAnswer']>('plans', bodyOf(model, rows, form), signal))
  return { plan, prompts: rows.flatMap((row) => Array<string>(imagesOf([row], form)).fill(row.prompt)) }
}

/** Start a job and return its id. */
export async function start(
  model: Model | undefined,
  rows: readonly PromptRow[],
  form: Form,
  key: string,
): Promise<string> {
  const more = rows.length > 1 ? ` and ${rows.length - 1} more` : ''
  const title = (rows[0]?.prompt ?? '').slice(0, 200) + more
  const body = { ...bodyOf(model, rows, form), partial_images: PREVIEWS, metadata: { title } }
  return (await post<Schemas['JobAnswer']>('jobs', body, undefined, { 'Idempotency-Key': key })).id
}

export async function loadJob(id: string): Promise<Snapshot> {
  return snapshotOf(await get<Schemas['JobAnswer']>(`jobs/${encodeURIComponent(id)}`))
}

export async function cancel(id: string): Promise<void> {
  await post(`jobs/${encodeURIComponent(id)}/cancel`)
}

export async function loadJobs(after: string | null = null): Promise<Page> {
  const list = await get<Schemas['JobList']>(`jobs?limit=${PAGE}${after ? `&after=${encodeURIComponent(after)}` : ''}`)
  return { jobs: list.data.filter(({ kind }) => kind !== 'plan').map(summaryOf), next: list.has_more ? list.last_id : null }
}

// From the JSON of the service (src/cotrunk/service/api/schemas) to what the page shows, and back.

import type { Form } from '../compose/draft.svelte'
import { ownSettings, settingsOf } from '../compose/form'
import type { JobImage, JobSummary, Model, Plan, PlannedGroup, Rows } from '../job/model'
import type { JobEvent, Snapshot } from '../job/view.svelte'
import type { PromptRow } from '../prompts/rows'
import type { Branch } from '../tree/layout'
import type { components } from './openapi'

type Schemas = components['schemas']
type Trunk = Schemas['Trunk'] | null | undefined
type WireRows = Pick<Schemas['RowCounts'], keyof Rows>

/** A tree as the service sends it: what follows from the rest may be left out. */
interface WireBranch {
  images?: number[]
  stop: number
  children?: WireBranch[]
}

/** Return the address of a file of the service, below that of the page whatever proxy lies between. */
export function addressOf(url: string): string {
  const { pathname, search } = new URL(url, 'http://service')
  return pathname.slice(1) + search
}

function sizeOf(size: string | null): [number | null, number | null] {
  const match = /^(\d+)x(\d+)$/.exec(size ?? '')
  return match ? [Number(match[1]), Number(match[2])] : [null, null]
}

function rowsOf({ independent, computed, sharing, skipping, guidance, replay }: WireRows): Rows {
  return { independent, computed, sharing, skipping, guidance, replay }
}

function trunkOf(trunk: Trunk): JobImage['trunk'] {
  return trunk ? { hit: trunk.hit, branch: trunk.branch } : null
}

export function branchOf(tree: WireBranch, start = 0): Branch {
  const children = (tree.children ?? []).map((child) => branchOf(child, tree.stop))
  return { images: tree.images ?? children.flatMap(({ images }) => images), start, stop: tree.stop, children }
}

export function modelOf(data: Schemas['ModelAnswer']): Model {
  const [width, height] = sizeOf(data.size ?? null)
  return {
    id: data.id,
    width,
    height,
    multiple: data.size_multiple ?? 1,
    steps: data.steps ?? null,
    guidanceScale: data.guidance_scale ?? null,
    takesNegativePrompt: data.negative_prompt ?? true,
    note: data.note ?? null,
    isReady: data.steps != null,
  }
}

export function imageOf(data: Schemas['JobImage'], model: string): JobImage {
  const [width, height] = sizeOf(data.size)
  return {
    id: data.id,
    number: data.number,
    name: data.custom_id,
    prompt: data.prompt,
    negativePrompt: data.negative_prompt,
    state: data.state,
    reason: data.reason,
    seed: data.seed,
    width,
    height,
    steps: data.steps,
    guidanceScale: data.guidance_scale,
    model,
    group: data.group,
    sharedWith: data.shared_with,
    rows: data.rows && rowsOf(data.rows),
    waited: data.waited,
    seconds: data.seconds,
    trunk: trunkOf(data.trunk),
    address: data.url && addressOf(data.url),
  }
}

export function snapshotOf(data: Schemas['JobAnswer']): Snapshot {
  return {
    id: data.id,
    created: data.created_at,
    finished: data.finished_at,
    reason: data.reason,
    images: data.images.map((image) => imageOf(image, data.model)),
    groups: [],
    links: { events: addressOf(data.links.events), archive: addressOf(data.links.archive) },
  }
}

export function summaryOf(data: Schemas['JobSummary']): JobSummary {
  return {
    id: data.id,
    state: data.state,
    created: data.created_at,
    finished: data.finished_at,
    counts: data.counts,
    title: String(data.metadata.title ?? '') || (data.kind === 'batch' ? `Batch ${data.id}` : data.id),
  }
}

export function planOf(data: Schemas['PlanAnswer']): Plan {
  const groups = data.groups.map((group): PlannedGroup => {
    return {
      images: group.images,
      tree: branchOf(group.tree as unknown as WireBranch),
      similarity: group.similarity,
      rows: rowsOf(group.rows),
    }
  })
  return { groups, rows: rowsOf(data.rows), seconds: data.seconds, steps: data.steps }
}

/** Return the body of a request for a job or a plan: what a row says goes before what the form says. */
export function bodyOf(model: Model | undefined, rows: readonly PromptRow[], form: Form): Schemas['JobRequest'] {
  const prompts = rows.map((row) => {
    const item = { prompt: row.prompt, ...(row.id === undefined ? {} : { custom_id: row.id }), ...ownSettings(row, form, model) }
    return Object.keys(item).length > 1 ? item : row.prompt
  })
  const body: Schemas['JobRequest'] = { prompts, ...settingsOf(form, model) }
  if (model) body.model = model.id
  if (!form.isSharing) body.group = 'alone'
  return body
}

/** Return an event of a job; its data are those of src/cotrunk/service/shapes.py. */
export function eventOf(kind: string, data: any): JobEvent {
  if (kind === 'grouped') {
    // `images` are those of this job, `members` all that the tree is about; an image that runs alone has no tree.
    const tree = data.tree ? branchOf(data.tree) : null
    return { kind, group: { id: data.group, images: data.members ?? data.images, tree, trunk: trunkOf(data.trunk) } }
  }
  if (kind === 'step') return { kind, images: data.images, step: data.step, steps: data.steps }
  if (kind === 'partial') return { kind, image: data.image, address: addressOf(data.url) }
  if (kind === 'done') return { kind, image: data.image, result: resultOf(data) }
  if (kind === 'failed') return { kind, image: data.image, reason: data.reason ?? null }
  if (kind === 'cancelled') return { kind, images: data.images }
  return { kind: kind === 'finished' ? kind : 'other' }
}

function resultOf({ result, url }: any): Partial<JobImage> {
  return {
    seed: result.seed,
    width: result.width,
    height: result.height,
    steps: result.steps,
    guidanceScale: result.guidance_scale,
    group: result.group,
    sharedWith: result.shared_with,
    rows: rowsOf(result.rows),
    waited: result.waited,
    seconds: result.seconds,
    trunk: trunkOf(result.trunk),
    address: addressOf(url),
  }
}

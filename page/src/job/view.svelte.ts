// A job as the page shows it: a snapshot of the service, and the events since.

import { addRows, type ImageState, type JobGroup, type JobImage, type Rows } from './model'

export interface Snapshot {
  id: string
  created: number
  finished: number | null
  /** Why the job as a whole failed. */
  reason: string | null
  images: JobImage[]
  groups: JobGroup[]
  /** Addresses that need no key, for an hour. */
  links: { events: string; archive: string }
}

export type JobEvent =
  | { kind: 'grouped'; group: JobGroup }
  | { kind: 'step'; images: string[]; step: number; steps: number }
  | { kind: 'partial'; image: string; address: string }
  | { kind: 'done'; image: string; result: Partial<JobImage> }
  | { kind: 'failed'; image: string; reason: string | null }
  | { kind: 'cancelled'; images: string[] }
  | { kind: 'finished' }
  | { kind: 'other' }

export interface Progress {
  step: number
  steps: number
}

const FINAL: readonly ImageState[] = ['done', 'failed', 'cancelled']

export function isFinal(state: ImageState): boolean {
  return FINAL.includes(state)
}

export class JobView {
  readonly id: string
  readonly created: number
  finished = $state<number | null>(null)
  reason = $state<string | null>(null)
  links: Snapshot['links']
  images = $state<JobImage[]>([])
  groups = $state<JobGroup[]>([])
  /** How far the images that are being generated are, by their ids. */
  progress = $state<Record<string, Progress>>({})
  readonly counts = $derived(countStates(this.images))
  readonly state = $derived(stateOf(this.counts))
  readonly isFinished = $derived(this.counts.waiting + this.counts.running === 0)
  readonly rows: Rows = $derived(addRows(this.images.map((image) => image.rows)))
  #places = new Map<string, number>()

  constructor(snapshot: Snapshot) {
    this.id = snapshot.id
    this.created = snapshot.created
    this.links = snapshot.links
    this.images = snapshot.images
    this.groups = snapshot.groups
    this.renew(snapshot)
    snapshot.images.forEach((image, index) => this.#places.set(image.id, index))
  }

  /** Take over a later snapshot: its addresses hold for another hour, and it may be ahead of the events. */
  renew(snapshot: Snapshot): void {
    this.finished = snapshot.finished
    this.reason = snapshot.reason
    this.links = snapshot.links
    snapshot.images.forEach((image, index) => {
      const shown = this.images[index]
      if (shown && (isFinal(image.state) || !isFinal(shown.state))) {
        Object.assign(shown, image, { address: image.address ?? shown.address })
      }
    })
  }

  /** Return an image of this job; undefined for one of another job, which may be in the same group. */
  image(id: string): JobImage | undefined {
    const place = this.#places.get(id)
    return place === undefined ? undefined : this.images[place]
  }

  /** Take an event in. It may be an old one: the service sends them from the start after a reload of the page. */
  apply(event: JobEvent): void {
    if (event.kind === 'grouped') this.#grouped(event.group)
    else if (event.kind === 'step') this.#stepped(event.images, event)
    else if (event.kind === 'cancelled') {
      for (const image of event.images.map((id) => this.image(id))) {
        if (image && !isFinal(image.state)) this.#end(image, 'cancelled', { address: null })
      }
    } else if (event.kind !== 'other' && event.kind !== 'finished') {
      const image = this.image(event.image)
      if (!image || isFinal(image.state)) return
      if (event.kind === 'partial') image.address = event.address
      else if (event.kind === 'done') this.#end(image, 'done', event.result)
      else this.#end(image, 'failed', { reason: event.reason, address: null })
    }
  }

  #end(image: JobImage, state: ImageState, facts: Partial<JobImage>): void {
    Object.assign(image, facts, { state })
    delete this.progress[image.id]
  }

  #grouped(group: JobGroup): void {
    const place = this.groups.findIndex(({ id }) => id === group.id)
    if (place >= 0) this.groups[place] = group
    else this.groups.push(group)
    let hasMoved = false // an image whose group failed is generated in another one
    for (const id of group.images) {
      const image = this.image(id)
      if (image && !isFinal(image.state)) {
        hasMoved ||= image.group !== null && image.group !== group.id
        image.group = group.id
        image.state = 'running'
      }
    }
    if (hasMoved) {
      this.groups = this.groups.filter(({ id, images }) => images.some((each) => (this.image(each)?.group ?? id) === id))
    }
  }

  #stepped(images: string[], { step, steps }: Progress): void {
    for (const id of images) {
      const image = this.image(id)
      if (image && !isFinal(image.state)) {
        image.state = 'running'
        this.progress[id] = { step, steps }
      }
    }
  }
}

function countStates(images: readonly JobImage[]): Record<ImageState, number> {
  const counts = { waiting: 0, running: 0, done: 0, failed: 0, cancelled: 0 }
  for (const { state } of images) counts[state] += 1
  return counts
}

/** Return the state of a job from those of its images. */
export function stateOf(counts: Record<ImageState, number>): ImageState {
  if (counts.running || (counts.waiting && (counts.done || counts.failed))) return 'running'
  if (counts.waiting) return 'waiting'
  if (counts.cancelled) return 'cancelled'
  return counts.failed && !counts.done ? 'failed' : 'done'
}

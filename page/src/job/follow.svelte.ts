// Loads a job and follows its events until every image is final, also when the service is away for a while.

import { ApiError } from '../api/client'
import { follow } from '../api/events'
import { loadJob } from '../api/jobs'
import { service } from '../api/service.svelte'
import { eventOf } from '../api/wire'
import { JobView, type JobEvent } from './view.svelte'

const TOGETHER = 40 // milliseconds in which events are collected, so that the page is drawn once for all of them
const AGAIN = 2000 // milliseconds until a refused connection is tried again
const RENEW = 50 * 60_000 // addresses of images hold for an hour

export class Following {
  job = $state<JobView | null>(null)
  error = $state<string | null>(null)
  isConnected = $state(true)
  #stop: (() => void) | null = null
  #timers = new Set<ReturnType<typeof setTimeout>>()
  #isClosed = false
  #isOver = false // the last event has arrived
  #events: JobEvent[] = []
  #renewing: Promise<void> | null = null

  constructor(readonly id: string) {
    void this.#load()
    this.#keepValid()
  }

  close(): void {
    this.#isClosed = true
    this.#stop?.()
    this.#timers.forEach(clearTimeout)
  }

  /** Load the job again, for addresses that are valid and for what the events have not said yet. */
  async refresh(): Promise<void> {
    const snapshot = await loadJob(this.id)
    this.job?.renew(snapshot)
  }

  /** Load the job for addresses that are valid. All images that ask at the same time share one request. */
  renewAddresses(): Promise<void> {
    this.#renewing ??= this.refresh()
      .catch(() => {})
      .finally(() => (this.#renewing = null))
    return this.#renewing
  }

  async #load(): Promise<void> {
    try {
      const snapshot = await loadJob(this.id)
      if (this.#isClosed) return
      if (this.job) this.job.renew(snapshot)
      else this.job = new JobView(snapshot)
      this.error = null
      this.isConnected = true
      this.#listen(this.job)
    } catch (error) {
      if (this.#isClosed) return
      service.note(error)
      const isLasting = error instanceof ApiError && error.status >= 400 && error.status < 500 && error.status !== 429
      if (isLasting) this.error = error.message
      else this.#again()
    }
  }

  #listen(job: JobView): void {
    this.#stop?.()
    this.#stop = follow(job.links.events, {
      event: (kind, data) => {
        this.#events.push(eventOf(kind, data))
        if (this.#events.length === 1) this.#later(TOGETHER, () => this.#take(job))
      },
      connected: (isConnected) => {
        this.#take(job)
        if (!isConnected && job.isFinished) this.#finish() // the service has nothing more to say
        else this.isConnected = isConnected
      },
      refused: () => this.#again(),
    })
  }

  /** Ask for new addresses before those that are shown expire. */
  #keepValid(): void {
    this.#later(RENEW, () => {
      void this.renewAddresses()
      this.#keepValid()
    })
  }

  #take(job: JobView): void {
    const events = this.#events
    this.#events = []
    events.forEach((event) => job.apply(event))
    if (events.some(({ kind }) => kind === 'finished')) this.#finish()
  }

  /** The events are over: take the last facts from the job itself. */
  #finish(): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#stop?.()
    this.isConnected = true
    void this.refresh().catch(() => {})
  }

  #again(): void {
    if (this.#isClosed || this.#isOver) return
    this.isConnected = false
    this.#later(AGAIN, () => void this.#load())
  }

  #later(milliseconds: number, run: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      run()
    }, milliseconds)
    this.#timers.add(timer)
  }
}

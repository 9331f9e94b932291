// What the page knows about the service: its models, whether it answers, and whether it wants a key.

import type { Model } from '../job/model'
import { ApiError, currentKey, useKey } from './client'
import { loadModels } from './jobs'

class Service {
  models = $state<Model[]>([])
  isLoading = $state(true)
  /** A sentence, while the service does not answer. */
  problem = $state<string | null>(null)
  needsKey = $state(false)
  /** Why the last key was refused. */
  refused = $state<string | null>(null)
  /** Counts the keys that were entered: what was loaded with another key is loaded again. */
  session = $state(0)
  #timer: ReturnType<typeof setTimeout> | undefined

  /** Load the models, and try again every few seconds until the service is ready. */
  async load(): Promise<void> {
    clearTimeout(this.#timer)
    try {
      this.models = await loadModels()
      this.problem = null
      this.needsKey = false
      this.isLoading = false
      if (this.models.every(({ isReady }) => isReady)) return
    } catch (error) {
      this.isLoading = false
      this.note(error)
      if (this.needsKey) return
    }
    this.#timer = setTimeout(() => void this.load(), 3000)
  }

  /** Take note of an error that says something about the service as a whole. */
  note(error: unknown): void {
    if (!(error instanceof ApiError)) return
    if (error.status === 401) {
      this.refused = currentKey() === null ? null : error.message
      this.needsKey = true
    } else if (error.status === 0 || error.status >= 500) {
      this.problem = error.message
      clearTimeout(this.#timer)
      this.#timer = setTimeout(() => void this.load(), 3000)
    }
  }

  async enter(key: string): Promise<void> {
    useKey(key)
    await this.load()
    if (!this.needsKey) this.session += 1
  }

  forget(): void {
    useKey(null)
    location.reload()
  }
}

export const service = new Service()

// The list and the settings that are being written. They survive a reload of the page.

import { formatOf, parsePrompts, type Format } from '../prompts/parse'

export interface Form {
  model: string
  steps: string
  guidance: string
  width: string
  height: string
  seed: string
  images: string
  negative: string
  isSharing: boolean
}

export const EMPTY: Form = {
  model: '',
  steps: '',
  guidance: '',
  width: '',
  height: '',
  seed: '',
  images: '',
  negative: '',
  isSharing: true,
}

const KEY = 'cotrunk draft'

class Draft {
  text = $state('')
  /** The format that the user chose, or null for the one that the text suggests. */
  chosen = $state<Format | null>(null)
  /** The name of the file that was opened. */
  name = $state('')
  form = $state<Form>({ ...EMPTY })
  readonly format = $derived(this.chosen ?? formatOf(this.text, this.name))
  readonly list = $derived(parsePrompts(this.text, this.format))

  constructor() {
    try {
      const saved = JSON.parse(sessionStorage.getItem(KEY) ?? '{}')
      this.text = saved.text ?? ''
      this.chosen = saved.chosen ?? null
      this.name = saved.name ?? ''
      this.form = { ...EMPTY, ...saved.form }
    } catch {
      // nothing was saved, or the browser forbids it
    }
  }

  /** Take the text of a file or of an earlier job. */
  open(text: string, name = ''): void {
    this.text = text
    this.name = name
    this.chosen = null
  }

  save(): void {
    try {
      const { text, chosen, name, form } = this
      sessionStorage.setItem(KEY, JSON.stringify({ text, chosen, name, form }))
    } catch {
      // a list that is larger than the browser stores
    }
  }
}

export const draft = new Draft()

// Numbers, durations and lists as words, as on the page of a run (src/cotrunk/drawing/wording.py).

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const tenths = new Intl.NumberFormat('en', { maximumFractionDigits: 1 })

/** Return "1 image" or "1,234 images". */
export function count(number: number, noun: string): string {
  return `${whole.format(number)} ${noun}${number === 1 ? '' : 's'}`
}

/** Return a number with one decimal, unless it is whole or large. */
export function amount(value: number): string {
  return (Math.abs(value) >= 1000 ? whole : tenths).format(value)
}

/** Return a fraction in percent, with a narrow space. */
export function percent(share: number): string {
  return `${tenths.format(100 * share)}\u202f%`
}

/** Return "a, b and c". */
export function listed(words: readonly string[]): string {
  return words.length > 1 ? `${words.slice(0, -1).join(', ')} and ${words.at(-1)}` : (words[0] ?? '')
}

/** Return a duration in seconds, minutes or hours. */
export function duration(seconds: number): string {
  if (seconds < 120) return `${tenths.format(seconds)} seconds`
  const minutes = Math.round(seconds / 60)
  return minutes < 120 ? `${minutes} minutes` : `${Math.floor(minutes / 60)} hours ${minutes % 60} minutes`
}

/** Return when something happened: the time of today, else the date and the time. */
export function moment(seconds: number, now = new Date()): string {
  const date = new Date(1000 * seconds)
  const time = date.toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit' })
  if (date.toDateString() === now.toDateString()) return `today, ${time}`
  return `${date.toLocaleDateString('en-GB', { day: 'numeric', month: 'long', year: 'numeric' })}, ${time}`
}

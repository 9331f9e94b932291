import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'

const css = readFileSync(new URL('../src/theme.css', import.meta.url), 'utf8')
const [light, dark] = css.split('@media').map((part) => {
  return Object.fromEntries([...part.matchAll(/--([\w-]+): (#[0-9a-f]{6});/g)].map((match) => [match[1]!, match[2]!]))
}) as [Record<string, string>, Record<string, string>]

function luminance(colour: string): number {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const value = parseInt(colour.slice(at, at + 2), 16) / 255
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
  }) as [number, number, number]
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}

function contrast(one: string, other: string): number {
  const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b) as [number, number]
  return (high + 0.05) / (low + 0.05)
}

// WCAG 2.2 AA: 4.5 for text, 3 for what bounds a control or carries meaning
const TEXT = [
  ['ink', 'paper'], ['ink', 'card'], ['ink', 'field'], ['quiet', 'paper'], ['quiet', 'card'], ['quiet', 'field'],
  ['trunk', 'paper'], ['trunk', 'card'], ['trunk', 'trunk-soft'], ['on-trunk', 'trunk'], ['on-trunk', 'trunk-strong'],
  ['warn', 'warn-soft'], ['warn', 'card'], ['warn', 'paper'],
] as const
const SHAPES = [['edge', 'card'], ['edge', 'field'], ['trunk', 'card'], ['branch', 'card'], ['trunk', 'line']] as const

test.each([['light', light], ['dark', dark]] as const)('the colours of the %s theme have contrast', (_, theme) => {
  const found = (pairs: readonly (readonly [string, string])[], least: number) =>
    pairs.filter(([one, other]) => !(contrast(theme[one]!, theme[other]!) >= least)).map((pair) => pair.join(' on '))
  expect(found(TEXT, 4.5)).toEqual([])
  expect(found(SHAPES, 3)).toEqual([])
})

test('both themes have the same colours', () => {
  expect(Object.keys(dark)).toEqual(Object.keys(light))
})

import { expect, test } from 'vitest'
import { amount, count, duration, listed, moment, percent } from '../src/words'

test('numbers are written as on the page of a run', () => {
  expect([count(1, 'image'), count(1234, 'image')]).toEqual(['1 image', '1,234 images'])
  expect([amount(29.333), amount(40), amount(1234.5)]).toEqual(['29.3', '40', '1,235'])
  expect([percent(0.2), percent(0.1234)]).toEqual(['20\u202f%', '12.3\u202f%'])
  expect([duration(1.25), duration(130), duration(7300)]).toEqual(['1.3 seconds', '2 minutes', '2 hours 2 minutes'])
  expect(listed(['a', 'b', 'c'])).toBe('a, b and c')
})

test('the moment of today has no date', () => {
  const now = new Date(2026, 10, 29, 15, 0)
  expect(moment(new Date(2026, 10, 29, 9, 5).getTime() / 1000, now)).toBe('today, 09:05')
  expect(moment(new Date(2026, 10, 28, 9, 5).getTime() / 1000, now)).toBe('28 November 2026, 09:05')
})

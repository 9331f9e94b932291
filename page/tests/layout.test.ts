import { expect, test } from 'vitest'
import { END, layout, place, ticks, type Branch } from '../src/tree/layout'

const leaf = (image: number, start: number, stop = 20): Branch => ({ images: [image], start, stop, children: [] })
const pair: Branch = { images: [0, 2], start: 8, stop: 12, children: [leaf(0, 12), leaf(2, 12)] }
const tree: Branch = { images: [0, 1, 2], start: 0, stop: 8, children: [pair, leaf(1, 8)] }

test('images are ordered so that no two lines cross', () => {
  expect(layout(tree).order).toEqual([0, 2, 1])
})

test('each image has a row of its own, and a trunk lies between its branches', () => {
  const { lines } = layout(tree)
  const ends = lines.filter(({ kind, path }) => kind === 'branch' && path.endsWith('H100')).map(({ path }) => path)
  expect(ends.map((path) => Number(/([\d.]+)H100$/.exec(path)?.[1] ?? /M[\d.]+ ([\d.]+)/.exec(path)?.[1]))).toEqual([0.5, 1.5, 2.5])
  expect(lines.some(({ kind, path }) => kind === 'trunk' && path.startsWith(`M0 1.75H${place(8, 20)}`))).toBe(true)
})

test('a trunk is thicker the more images share it', () => {
  const [inner, outer] = layout(tree).lines.filter(({ kind, path }) => kind === 'trunk' && !path.endsWith('h0.001'))
  expect(outer!.width).toBeGreaterThan(inner!.width)
})

test('branch steps are named once, and the last step lies before the images', () => {
  expect(layout(tree)).toMatchObject({ branches: [8, 12], steps: 20 })
  expect(place(20, 20)).toBe(END)
})

test('images that never branch separate after the last step', () => {
  const { order, lines, branches } = layout({ images: [3, 4], start: 0, stop: 20, children: [] })
  expect(order).toEqual([3, 4])
  expect(branches).toEqual([])
  expect(lines.filter(({ kind }) => kind === 'branch')).toHaveLength(2)
})

test('labels of the axis do not overlap', () => {
  const many: Branch = {
    images: [0, 1, 2],
    start: 0,
    stop: 8,
    children: [{ images: [0, 1], start: 8, stop: 9, children: [leaf(0, 9), leaf(1, 9)] }, leaf(2, 8)],
  }
  expect(ticks(layout(many))).toEqual([8])
})

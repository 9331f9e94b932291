import { expect, test } from 'vitest'
import { addressOf, bodyOf, branchOf, eventOf } from '../src/api/wire'
import { imagesOf, withLine, wrong } from '../src/compose/form'
import { busySeconds, NO_ROWS, type JobImage, type Model } from '../src/job/model'
import { JobView, stateOf, type Snapshot } from '../src/job/view.svelte'

const EMPTY = { model: '', steps: '', guidance: '', width: '', height: '', seed: '', images: '', negative: '', isSharing: true }

function image(number: number, state: JobImage['state'] = 'waiting'): JobImage {
  return {
    id: `i${number}`, number, name: null, prompt: `prompt ${number}`, negativePrompt: null, state, reason: null, seed: null,
    width: null, height: null, steps: null, guidanceScale: null, model: 'mini', group: null, sharedWith: [], rows: null,
    waited: null, seconds: null, trunk: null, address: null,
  }
}

function snapshot(images: JobImage[]): Snapshot {
  return { id: 'j', created: 0, finished: null, reason: null, images, groups: [], links: { events: 'e', archive: 'a' } }
}

const MODEL: Model = {
  id: 'mini', width: 96, height: 128, multiple: 8, steps: 20, guidanceScale: 5, takesNegativePrompt: true, note: null,
  isReady: true,
}
const rows = { ...NO_ROWS, independent: 40, computed: 30, sharing: 10 }
const result = {
  seed: 7, width: 128, height: 128, steps: 20, guidance_scale: 5, group: 'g', shared_with: ['i1'], rows, trunk: null,
  waited: 1, seconds: 2, file: 'f', bytes: 1,
}
const tree = { images: [0, 1], stop: 8, children: [{ images: [0], stop: 20 }, { images: [1], stop: 20 }] }
const grouped = eventOf('grouped', { group: 'g', images: ['i0', 'i1'], tree, trunk: null })

test('events take a job from waiting to done', () => {
  const job = new JobView(snapshot([image(0), image(1)]))
  expect(job.state).toBe('waiting')
  job.apply(grouped)
  expect(job.images.map(({ state, group }) => [state, group])).toEqual([['running', 'g'], ['running', 'g']])
  job.apply(eventOf('step', { images: ['i0', 'i1', 'other'], step: 5, steps: 20 }))
  expect(job.progress).toEqual({ i0: { step: 5, steps: 20 }, i1: { step: 5, steps: 20 } })
  job.apply(eventOf('partial', { image: 'i0', url: 'http://host/v1/images/i0/partials/0?token=t' }))
  expect(job.image('i0')?.address).toBe('v1/images/i0/partials/0?token=t')
  job.apply(eventOf('done', { image: 'i0', result, url: '/v1/images/i0/content?token=t' }))
  expect(job.image('i0')).toMatchObject({ state: 'done', seed: 7, rows, address: 'v1/images/i0/content?token=t' })
  expect([job.state, job.isFinished, job.rows.computed]).toEqual(['running', false, 30])
  job.apply(eventOf('failed', { image: 'i1', reason: 'out of memory' }))
  expect([job.state, job.isFinished, job.image('i1')?.reason]).toEqual(['done', true, 'out of memory'])
  expect(job.progress).toEqual({})
})

test('old events, which come again after a reload, change no image that is done', () => {
  const job = new JobView(snapshot([{ ...image(0, 'done'), group: 'g', address: 'final' }, image(1)]))
  job.apply(grouped)
  job.apply(eventOf('step', { images: ['i0'], step: 5, steps: 20 }))
  job.apply(eventOf('partial', { image: 'i0', url: '/partial' }))
  expect(job.image('i0')).toMatchObject({ state: 'done', address: 'final' })
  expect(job.progress).toEqual({})
  expect(job.groups).toHaveLength(1)
})

test('an event that comes twice has no further effect', () => {
  const job = new JobView(snapshot([image(0), image(1)]))
  for (let times = 0; times < 2; times += 1) {
    job.apply(grouped)
    job.apply(eventOf('done', { image: 'i0', result, url: '/a' }))
  }
  expect([job.groups.length, job.counts.done, job.counts.running]).toEqual([1, 1, 1])
})

test('a group whose images run in another group after a crash is no longer shown', () => {
  const job = new JobView(snapshot([image(0), image(1)]))
  job.apply(grouped)
  for (const number of [0, 1]) {
    job.apply(eventOf('grouped', { group: `g${number}`, images: [`i${number}`], shared_with: [`i${number}`] }))
  }
  expect(job.groups.map(({ id }) => id)).toEqual(['g0', 'g1'])
})

test('cancelling a job as a whole cancels every image that is not done', () => {
  const job = new JobView(snapshot([image(0, 'done'), image(1), image(2, 'running')]))
  job.apply(eventOf('cancelled', { images: ['i0', 'i1', 'i2', 'elsewhere'] }))
  expect(job.images.map(({ state }) => state)).toEqual(['done', 'cancelled', 'cancelled'])
})

test('a later snapshot brings new addresses, and does not take back what events have said', () => {
  const job = new JobView(snapshot([image(0, 'done'), image(1)]))
  job.apply(eventOf('done', { image: 'i1', result, url: '/a' }))
  job.renew({ ...snapshot([{ ...image(0, 'done'), address: 'new' }, image(1)]), finished: 5 })
  expect(job.images.map(({ state, address }) => [state, address])).toEqual([['done', 'new'], ['done', 'a']])
  expect(job.finished).toBe(5)
})

test('a group may hold images of other requests', () => {
  const job = new JobView(snapshot([image(0)]))
  job.apply(eventOf('grouped', { group: 'g', images: ['i0'], members: ['i0', 'elsewhere'], tree, trunk: { hit: true, branch: 8 } }))
  expect(job.image('elsewhere')).toBeUndefined()
  expect(job.groups[0]?.trunk).toEqual({ hit: true, branch: 8 })
})

test('an unknown event is left out', () => {
  expect(eventOf('accepted', {})).toEqual({ kind: 'other' })
})

test.each([
  [{ waiting: 1, running: 0, done: 0, failed: 0, cancelled: 0 }, 'waiting'],
  [{ waiting: 1, running: 0, done: 1, failed: 0, cancelled: 0 }, 'running'],
  [{ waiting: 0, running: 0, done: 1, failed: 1, cancelled: 0 }, 'done'],
  [{ waiting: 0, running: 0, done: 0, failed: 1, cancelled: 0 }, 'failed'],
  [{ waiting: 0, running: 0, done: 1, failed: 0, cancelled: 1 }, 'cancelled'],
] as const)('%j is %s', (counts, state) => {
  expect(stateOf(counts)).toBe(state)
})

test('a tree may leave out what follows from the rest', () => {
  const left = branchOf({ stop: 8, children: [{ images: [2], stop: 20 }, { images: [5], stop: 20 }] })
  expect(left).toMatchObject({ images: [2, 5], start: 0, children: [{ start: 8, stop: 20 }, { start: 8, stop: 20 }] })
})

test('addresses stay below the page', () => {
  expect(addressOf('http://127.0.0.1:8000/v1/images/a/content?token=x')).toBe('v1/images/a/content?token=x')
  expect(addressOf('/v1/jobs/b/events')).toBe('v1/jobs/b/events')
})

test('the time of a job is that in which it was worked on', () => {
  expect(busySeconds([{ waited: 5, seconds: 2 }, { waited: 1, seconds: 2 }, { waited: 2, seconds: 2 }])).toBe(5)
  expect(busySeconds([{ waited: null, seconds: null }])).toBeNull()
})

test('a row goes before the form, and what neither says is left out of the request', () => {
  const list = [{ prompt: 'a fox', seed: 0, steps: 4, width: 32 }, { prompt: 'an owl', id: 'o', images: 2 }, { prompt: 'a' }]
  const form = { ...EMPTY, steps: '8', images: '3', guidance: '0', width: '96', height: '64', negative: ' grey ' }
  expect(imagesOf(list, form)).toBe(8)
  expect(bodyOf(MODEL, list, form)).toEqual({
    model: 'mini',
    n: 3,
    size: '96x64',
    steps: 8,
    negative_prompt: 'grey',
    guidance_scale: 0,
    prompts: [{ prompt: 'a fox', seed: 0, steps: 4, size: '32x64' }, { prompt: 'an owl', custom_id: 'o', n: 2 }, 'a'],
  })
  expect(bodyOf(undefined, [{ prompt: 'a' }], { ...EMPTY, isSharing: false })).toEqual({ prompts: ['a'], group: 'alone' })
  expect(bodyOf(MODEL, [{ prompt: 'a', height: 32 }], { ...EMPTY, width: '64' })).toEqual({
    model: 'mini',
    size: '64x128',
    prompts: [{ prompt: 'a', size: '64x32' }],
  })
})

test('a sentence of the service about a prompt names its line', () => {
  expect(withLine('prompts.1.steps 900 is too large.', [1, 4])).toBe('Line 4: steps 900 is too large.')
  expect(withLine('prompts.0 has 40,000 characters.', [3])).toBe('Line 3: the prompt has 40,000 characters.')
  expect(withLine('steps 900 is too large.', [3])).toBe('steps 900 is too large.')
})

test('the form says what is wrong before anything is sent', () => {
  expect(wrong('steps', '', MODEL)).toBeNull()
  expect(wrong('steps', '0', MODEL)).toBe('Use a whole number of 1 or more.')
  expect(wrong('steps', '2.5', MODEL)).toBe('Use a whole number of 1 or more.')
  expect(wrong('guidance', '-1', MODEL)).toBe('Use a number of 0 or more.')
  expect(wrong('guidance', '7.5', MODEL)).toBeNull()
  expect(wrong('width', '130', MODEL)).toBe('Use a multiple of 8, such as 128.')
  expect(wrong('seed', '0', MODEL)).toBeNull()
})

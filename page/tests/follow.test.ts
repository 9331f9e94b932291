import { expect, test, vi } from 'vitest'
import { loadJob } from '../src/api/jobs'
import { Following } from '../src/job/follow.svelte'

vi.mock('../src/api/jobs', () => ({ loadJob: vi.fn() }))

test('images whose addresses have ended share one request', async () => {
  const load = vi.mocked(loadJob)
  load.mockRejectedValue(new Error('the service is away'))
  const following = new Following('job_1')
  const before = load.mock.calls.length
  await Promise.all(Array.from({ length: 100 }, () => following.renewAddresses()))
  expect(load.mock.calls.length).toBe(before + 1)
  await following.renewAddresses()
  expect(load.mock.calls.length).toBe(before + 2)
  following.close()
})

// The address of the page: #/ for a new list, #/jobs for earlier jobs, #/jobs/ID for one. It survives a reload.

export type Route = { name: 'new' } | { name: 'jobs' } | { name: 'job'; id: string }

export function routeOf(hash: string): Route {
  const [first, second] = hash.replace(/^#?\/?/, '').split('/')
  if (first !== 'jobs') return { name: 'new' }
  if (!second) return { name: 'jobs' }
  try {
    return { name: 'job', id: decodeURIComponent(second) }
  } catch {
    return { name: 'job', id: second }
  }
}

export function addressOf(route: Route): string {
  if (route.name === 'new') return '#/'
  return route.name === 'jobs' ? '#/jobs' : `#/jobs/${encodeURIComponent(route.id)}`
}

class Router {
  route = $state<Route>(routeOf(location.hash))

  constructor() {
    addEventListener('hashchange', () => (this.route = routeOf(location.hash)))
  }

  go(route: Route): void {
    location.hash = addressOf(route)
  }
}

export const router = new Router()

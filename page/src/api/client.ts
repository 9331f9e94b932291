// Requests to the service. Every error is one sentence that the page can show.

/** An answer that is an error. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message)
  }
}

const KEY = 'cotrunk key'
const UNREACHABLE = 'The service does not answer. Check that cotrunk serve is running.'

const BASE = 'v1' // relative, so that the page also works below a path of a proxy

function stored(): string | null {
  try {
    return sessionStorage.getItem(KEY)
  } catch {
    return null // a browser that forbids storage; the key then lasts until the page is reloaded
  }
}

let key = stored()

export function currentKey(): string | null {
  return key
}

/** Use a key from now on, until the tab is closed. */
export function useKey(value: string | null): void {
  key = value
  try {
    if (value === null) sessionStorage.removeItem(KEY)
    else sessionStorage.setItem(KEY, value)
  } catch {
    // see `stored`
  }
}

function headers(): Record<string, string> {
  return key === null ? {} : { Authorization: `Bearer ${key}` }
}

async function send(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response
  try {
    response = await fetch(path, { ...init, headers: { ...init.headers, ...headers() } })
  } catch (error) {
    if ((error as Error).name === 'AbortError') throw error
    throw new ApiError(UNREACHABLE, 0)
  }
  if (!response.ok) throw await errorOf(response)
  return response
}

async function errorOf(response: Response): Promise<ApiError> {
  try {
    const { error } = await response.json()
    if (typeof error?.message === 'string') return new ApiError(error.message, response.status)
  } catch {
    // not the service's own answer: a proxy's, for example
  }
  return new ApiError(`The service answered with the error ${response.status}.`, response.status)
}

export async function get<T>(path: string): Promise<T> {
  return (await send(`${BASE}/${path}`)).json()
}

export async function post<T>(
  path: string,
  body: unknown = {},
  signal: AbortSignal | null = null,
  extra: Record<string, string> = {},
): Promise<T> {
  const init = { method: 'POST', body: JSON.stringify(body), headers: { 'Content-Type': 'application/json', ...extra } }
  return (await send(`${BASE}/${path}`, { ...init, signal })).json()
}

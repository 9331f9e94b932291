// The events of a job. The browser resumes after the last one that arrived when the connection is lost.

export interface Listener {
  /** Called with each event, in order. */
  event: (kind: string, data: unknown) => void
  /** Called when the connection is lost and when it is there again. */
  connected: (isConnected: boolean) => void
  /** Called when the service refuses the connection: it is away behind a proxy, or the address has expired. */
  refused: () => void
}

const KINDS = ['accepted', 'grouped', 'step', 'partial', 'done', 'failed', 'cancelled', 'finished']

/** Follow the events at an address until the returned function is called. */
export function follow(address: string, listener: Listener): () => void {
  const source = new EventSource(address)
  source.onopen = () => listener.connected(true)
  source.onerror = () => {
    const isRefused = source.readyState === EventSource.CLOSED // before the listener may close it itself
    listener.connected(false)
    if (isRefused) listener.refused()
  }
  for (const kind of KINDS) {
    source.addEventListener(kind, (event) => listener.event(kind, JSON.parse((event as MessageEvent<string>).data)))
  }
  return () => source.close()
}

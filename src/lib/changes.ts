/**
 * A stream of wake-ups: one at once, then one after every `wake()`, however many came in between.
 * Ends when the signal aborts.
 */
export async function* changesOf(
  signal: AbortSignal,
  subscribe: (wake: () => void) => () => void,
): AsyncIterable<void> {
  let pending = true;
  let rouse: () => void = () => undefined;
  const wake = () => {
    pending = true;
    rouse();
  };
  const unsubscribe = subscribe(wake);
  signal.addEventListener('abort', wake, { once: true });
  try {
    while (!signal.aborted) {
      if (pending) {
        pending = false;
        yield;
      } else {
        await new Promise<void>((resolve) => {
          rouse = resolve;
          if (pending || signal.aborted) resolve();
        });
      }
    }
  } finally {
    unsubscribe();
    signal.removeEventListener('abort', wake);
  }
}

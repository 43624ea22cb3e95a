import { isRouseError, RouseError } from '../errors.ts';
import { proxyLimits } from '../limits.ts';
import type { JobSpec, JobView, Proxy } from './port.ts';

/**
 * Starts a proxy's job and follows it to its end. A proxy that was restarted has forgotten it:
 * then it is started again, and what was stored is reused. A spec that holds a pass is made anew for
 * each start.
 *
 * Cancelled, the job is ended at the proxy; if it was done by then, that is the answer, because
 * what is stored stays stored. A server that shuts down only stops looking: the job goes on, and
 * the next server finds it by its id.
 */
export async function runJob(
  proxy: Proxy,
  spec: JobSpec | (() => Promise<JobSpec>),
  signal: AbortSignal,
  onProgress: (view: JobView) => void,
): Promise<JobView> {
  signal.throwIfAborted();
  const start = async () => proxy.startJob(typeof spec === 'function' ? await spec() : spec);
  let view = await start();
  while (view.state === 'running') {
    onProgress(view);
    if (signal.aborted) view = await endJob(proxy, view, signal);
    else view = await next(proxy, start, view, signal);
  }
  onProgress(view);
  if (view.state === 'done') return view;
  throw problemOf(view);
}

/** The job's news; the view as it was, at once, when the signal aborts meanwhile. */
async function next(
  proxy: Proxy,
  start: () => Promise<JobView>,
  view: JobView,
  signal: AbortSignal,
): Promise<JobView> {
  const aborted = Promise.withResolvers<JobView>();
  const onAbort = () => aborted.resolve(view);
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    const news = proxy.job(view.id, proxyLimits.jobPollMs, view.version);
    return await Promise.race([news, aborted.promise]);
  } catch (error) {
    if (!isRouseError(error, 'not-found') || signal.aborted) throw error;
    return await start();
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

async function endJob(proxy: Proxy, view: JobView, signal: AbortSignal): Promise<JobView> {
  // The reason that workflows/api.ts calls RunInterrupted.
  if (signal.reason === 'shutdown') throw new RouseError('cancelled', 'the server stops');
  await proxy.cancelJob(view.id);
  const ended = await proxy.job(view.id);
  if (ended.state !== 'running') return ended;
  throw new RouseError('internal', `the ${view.kind} ${view.id} was cancelled and runs on`);
}

function problemOf(view: JobView): RouseError {
  const { error } = view;
  if (error === undefined) return new RouseError('cancelled', `the ${view.kind} was cancelled`);
  return RouseError.fromProblem({
    code: error.code as RouseError['code'],
    title: error.message,
    status: 0,
    advice: error.advice,
  });
}

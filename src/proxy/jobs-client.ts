import { RouseError } from '../errors.ts';
import { proxyLimits } from '../limits.ts';
import type { JobSpec, JobView, Proxy } from './port.ts';

/**
 * Starts a proxy's job and follows it to its end. A proxy that was restarted has forgotten it:
 * then it is started again, and what was stored is reused.
 */
export async function runJob(
  proxy: Proxy,
  spec: JobSpec,
  signal: AbortSignal,
  onProgress: (view: JobView) => void,
): Promise<JobView> {
  let view = await proxy.startJob(spec);
  const cancel = () => void proxy.cancelJob(spec.id).catch(() => undefined);
  signal.addEventListener('abort', cancel, { once: true });
  try {
    while (view.state === 'running') {
      onProgress(view);
      signal.throwIfAborted();
      view = await next(proxy, spec, view);
    }
  } finally {
    signal.removeEventListener('abort', cancel);
  }
  onProgress(view);
  signal.throwIfAborted();
  if (view.state === 'done') return view;
  throw problemOf(view);
}

async function next(proxy: Proxy, spec: JobSpec, view: JobView): Promise<JobView> {
  try {
    return await proxy.job(spec.id, proxyLimits.jobPollMs, view.version);
  } catch (error) {
    if (error instanceof RouseError && error.code === 'not-found') {
      return proxy.startJob(spec);
    }
    throw error;
  }
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

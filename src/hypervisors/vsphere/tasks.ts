import { RouseError, isRouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';
import type { VimClient } from './client.ts';
import { faultError, isFault } from './faults.ts';
import { readExisting } from './properties.ts';
import { at, refAt, textAt } from './vim-xml.ts';
import type { Ref, VimNode, Xml } from './vim-xml.ts';
import { watchUntil } from './watch.ts';
import type { Latest, Subject } from './watch.ts';

/** Long work of the manager: begun by a `…_Task` call, followed by its property `info`. */
export interface TaskOptions {
  /** For sentences: `powering on web01`. */
  readonly what: string;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal | undefined;
  /** 0 to 100, whenever it is told. */
  readonly progress?: (percent: number) => void;
  /** Watched along; a promise that rejects ends the waiting with its error. */
  readonly beside?: { readonly subject: Subject; look(latest: Latest): Promise<void> };
}

/** Begins a task and waits for it; answers `info.result`. */
export async function runTask(
  client: VimClient,
  method: string,
  self: Ref,
  args: readonly Xml[],
  options: TaskOptions,
): Promise<VimNode | undefined> {
  return followTask(client, await beginTask(client, method, self, args, options), options);
}

export async function beginTask(
  client: VimClient,
  method: string,
  self: Ref,
  args: readonly Xml[],
  options: Pick<TaskOptions, 'what' | 'signal'>,
): Promise<Ref> {
  const answer = await client.call(method, self, args, { signal: options.signal });
  const task = refAt(answer, 'returnval');
  if (task === undefined) {
    throw new RouseError('hypervisor-error', `${client.name} began no task: ${options.what}`);
  }
  client.begun.add(task.id);
  return task;
}

/** A task that has not ended; `isOurs`: begun by us, and not by a person or another program. */
export interface RunningTask {
  readonly ref: Ref;
  readonly isOurs: boolean;
  readonly user: string;
}

/**
 * Of a machine's `recentTask` the one of that kind (`relocate`, `powerOn`) that still runs. Ours are
 * those that this process began; after a restart, those of the user that Rouse logs in as.
 */
export async function runningTask(
  client: VimClient,
  recent: readonly Ref[],
  kind: string,
): Promise<RunningTask | undefined> {
  const tasks = await readExisting(client, recent, ['info']);
  for (const task of tasks) {
    const info = task.get('info');
    const state = textAt(info, 'state');
    const said = `${textAt(info, 'descriptionId') ?? ''} ${textAt(info, 'name') ?? ''}`;
    if (state !== 'running' && state !== 'queued') continue;
    if (!said.toLowerCase().includes(kind.toLowerCase())) continue;
    const user = textAt(info, 'reason.userName') ?? '';
    const own = await client.userName();
    const isOurs = client.begun.has(task.ref.id) || user.toLowerCase() === own.toLowerCase();
    return { ref: task.ref, isOurs, user };
  }
  return undefined;
}

/**
 * Waits for a task that runs already. When the signal aborts, it is cancelled at the manager and
 * waited for, unless the reason is `shutdown`: then it goes on and is found again later.
 */
export async function followTask(
  client: VimClient,
  task: Ref,
  options: TaskOptions,
): Promise<VimNode | undefined> {
  const { what, signal, timeoutMs = vsphereLimits.taskMsMax } = options;
  const watch = { what, signal, timeoutMs };
  try {
    return await waitFor(client, task, options, watch);
  } catch (error) {
    if (signal?.aborted !== true || signal.reason === 'shutdown') throw error;
    await cancelTask(client, task);
    return waitFor(client, task, options, {
      what,
      timeoutMs: vsphereLimits.cancelMsMax,
    });
  }
}

/** False when it has ended, or cannot be cancelled: who waits for it sees what becomes of it. */
export async function cancelTask(client: VimClient, task: Ref): Promise<boolean> {
  try {
    await client.call('CancelTask', task);
    return true;
  } catch (error) {
    if (!isFault(error)) throw error;
    return false;
  }
}

/** Waits until it is over, however it ends; false: it is not, after that time. */
export async function hasEnded(
  client: VimClient,
  task: Ref,
  options: { readonly what: string; readonly timeoutMs: number },
): Promise<boolean> {
  try {
    await followTask(client, task, options);
    return true;
  } catch (error) {
    if (isRouseError(error, 'time-out') && !isFault(error)) return false;
    if (isFault(error) || isRouseError(error, 'hypervisor-error')) return true;
    throw error;
  }
}

async function waitFor(
  client: VimClient,
  task: Ref,
  options: TaskOptions,
  watch: { what: string; timeoutMs: number; signal?: AbortSignal | undefined },
): Promise<VimNode | undefined> {
  const { beside, progress, what } = options;
  const subjects = [{ ref: task, paths: ['info'] }, ...(beside ? [beside.subject] : [])];
  const judge = async (latest: Latest) => {
    const ended = endOf(latest, task, what, progress);
    if (ended === undefined) await beside?.look(latest);
    return ended;
  };
  try {
    const { result } = await watchUntil(client, subjects, judge, watch);
    return result;
  } catch (error) {
    if (isFault(error, 'ManagedObjectNotFound')) throw lost(what);
    if (isRouseError(error, 'cancelled') && watch.signal?.aborted !== true && !isFault(error)) {
      throw lost(what);
    }
    throw error;
  }
}

function endOf(
  latest: Latest,
  task: Ref,
  what: string,
  progress: TaskOptions['progress'],
): { result: VimNode | undefined } | undefined {
  if (latest.isGone(task)) throw lost(what);
  const said = Number(latest.get(task, 'info.progress')?.text ?? Number.NaN);
  if (Number.isFinite(said)) progress?.(Math.max(0, Math.min(100, said)));
  switch (latest.get(task, 'info.state')?.text) {
    case 'success':
      return { result: latest.get(task, 'info.result') };
    case 'error': {
      const error = latest.get(task, 'info.error');
      throw faultError(at(error, 'fault'), textAt(error, 'localizedMessage'), what);
    }
    default:
      return undefined;
  }
}

/** Tasks live in the manager's memory: a restart forgets them. */
function lost(what: string): RouseError {
  return new RouseError('hypervisor-error', `the manager has forgotten its task: ${what}`, {
    advice: 'It was restarted; whether the task took effect is looked at when it is tried again.',
  });
}

import { RouseError, isRouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';
import type { VimClient } from './client.ts';
import { isFault } from './faults.ts';
import { ignoreFault, propertySpec } from './properties.ts';
import { all, at, leaf, node, refAt, reference, sameRef, textAt } from './vim-xml.ts';
import type { Ref, VimNode } from './vim-xml.ts';

/** An object and the properties of it that are watched. */
export interface Subject {
  readonly ref: Ref;
  readonly paths: readonly string[];
}

/** The newest values of what is watched. */
export interface Latest {
  /** Of a watched path, or of something below one: `info.state`. */
  get(ref: Ref, path: string): VimNode | undefined;
  isGone(ref: Ref): boolean;
}

export interface WatchOptions {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
  /** For sentences: `PowerOnVM_Task of web01`. */
  readonly what: string;
}

/**
 * Waits with WaitForUpdatesEx until `judge` answers something. A collector of its own for each
 * wait, as one collector serves one waiter; one that brings no news is given up for another. A
 * session that ends, and a manager that is away for a while, begin it anew: what is watched goes on
 * meanwhile.
 */
export async function watchUntil<T>(
  client: VimClient,
  subjects: readonly Subject[],
  judge: (latest: Latest) => T | undefined | Promise<T | undefined>,
  options: WatchOptions,
): Promise<T> {
  const deadline = client.clock.monotonic() + options.timeoutMs;
  const wait = { ...options, deadline };
  let awaySince: number | undefined;
  for (;;) {
    try {
      const verdict = await client.inSession(() =>
        watchOnce(client, subjects, judge, wait, () => (awaySince = undefined)),
      );
      if (verdict !== undefined) return verdict;
    } catch (error) {
      const isAway = isRouseError(error, 'hypervisor-unreachable') || isLate(error, wait);
      const isLost = isFault(error, 'NotAuthenticated');
      if (options.signal?.aborted || (!isAway && !isLost)) throw error;
      const now = client.clock.monotonic();
      awaySince ??= now;
      if (now - awaySince > vsphereLimits.awayMsMax) throw error;
      await client.clock.sleep(vsphereLimits.awayPauseMs, options.signal).catch(() => undefined);
    }
  }
}

interface Wait extends WatchOptions {
  readonly deadline: number;
}

/** An answer that did not come in time, as long as we have time ourselves. */
function isLate(error: unknown, wait: Wait): boolean {
  return isRouseError(error, 'time-out') && !(error instanceof WaitOver) && wait.timeoutMs > 0;
}

class WaitOver extends RouseError {}

async function watchOnce<T>(
  client: VimClient,
  subjects: readonly Subject[],
  judge: (latest: Latest) => T | undefined | Promise<T | undefined>,
  wait: Wait,
  heard: () => void,
): Promise<T | undefined> {
  const { propertyCollector } = await client.service();
  const made = await client.call('CreatePropertyCollector', propertyCollector, [], { bound: true });
  const collector = refAt(made, 'returnval');
  if (collector === undefined) {
    throw new RouseError('hypervisor-error', `${client.name} made no property collector`);
  }
  try {
    await client.call('CreateFilter', collector, filterOf(subjects), { bound: true });
    const values = new Values();
    let version = '';
    for (;;) {
      const update = await nextUpdate(client, collector, version, wait);
      const news = all(update, 'filterSet').flatMap((filter) => all(filter, 'objectSet'));
      for (const object of news) values.take(object);
      heard();
      const verdict = await judge(values);
      // No news in all that time: what the manager may have failed to tell is looked at anew.
      if (verdict !== undefined || news.length === 0) return verdict;
      version = textAt(update, 'version') ?? version;
    }
  } finally {
    await client
      .call('DestroyPropertyCollector', collector, [], { bound: true, timeoutMs: 10_000 })
      .catch(ignoreFault);
  }
}

/** CreateFilter: spec, partialUpdates. */
function filterOf(subjects: readonly Subject[]) {
  const byType = new Map<string, readonly string[]>();
  for (const { ref, paths } of subjects) {
    byType.set(ref.type, [...new Set([...(byType.get(ref.type) ?? []), ...paths])]);
  }
  return [
    node('spec', [
      ...[...byType].map(([type, paths]) => propertySpec(type, paths)),
      ...subjects.map(({ ref }) => node('objectSet', [reference('obj', ref), leaf('skip', false)])),
    ]),
    leaf('partialUpdates', false),
  ];
}

async function nextUpdate(
  client: VimClient,
  collector: Ref,
  version: string,
  wait: Wait,
): Promise<VimNode | undefined> {
  const left = wait.deadline - client.clock.monotonic();
  if (left <= 0) {
    throw new WaitOver('time-out', `${wait.what} did not end in time`, {
      advice: 'Look at it in the list of tasks of vCenter.',
    });
  }
  const seconds = Math.max(1, Math.min(vsphereLimits.updateWaitSeconds, Math.ceil(left / 1000)));
  const answer = await client.call(
    'WaitForUpdatesEx',
    collector,
    [leaf('version', version), node('options', [leaf('maxWaitSeconds', seconds)])],
    {
      bound: true,
      isLong: true,
      signal: wait.signal,
      timeoutMs: seconds * 1000 + vsphereLimits.updateSlackMs,
    },
  );
  return at(answer, 'returnval');
}

class Values implements Latest {
  readonly #objects: { readonly ref: Ref; readonly values: Map<string, VimNode> }[] = [];
  readonly #gone: Ref[] = [];

  get(ref: Ref, path: string): VimNode | undefined {
    const values = this.#objects.find((one) => sameRef(one.ref, ref))?.values;
    const names = path.split('.');
    // The longest part of the path that was told by itself, and the rest below it.
    for (let length = names.length; length > 0; length -= 1) {
      const told = values?.get(names.slice(0, length).join('.'));
      if (told === undefined) continue;
      return length === names.length ? told : at(told, names.slice(length).join('.'));
    }
    return undefined;
  }

  isGone(ref: Ref): boolean {
    return this.#gone.some((one) => sameRef(one, ref));
  }

  /** ObjectUpdate: kind, obj, changeSet { name, op, val }. */
  take(update: VimNode): void {
    const ref = refAt(update, 'obj');
    if (ref === undefined) return;
    if (textAt(update, 'kind') === 'leave') this.#gone.push(ref);
    let known = this.#objects.find((one) => sameRef(one.ref, ref));
    if (known === undefined) this.#objects.push((known = { ref, values: new Map() }));
    for (const change of all(update, 'changeSet')) {
      const name = textAt(change, 'name') ?? '';
      const value = at(change, 'val');
      for (const key of known.values.keys()) {
        if (key === name || key.startsWith(`${name}.`)) known.values.delete(key);
      }
      if (value !== undefined) known.values.set(name, value);
    }
  }
}

import { RouseError, isRouseError } from '../../errors.ts';
import type { VimClient } from './client.ts';
import { isAway, isFault } from './faults.ts';
import { machineRef } from './inventory.ts';
import { vsphereLimits } from './limits.ts';
import { entityName } from './names.ts';
import { readExisting, readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { followTask, runTask } from './tasks.ts';
import { all, flagAt, leaf, refAt, refsOf, textAt } from './vim-xml.ts';
import type { Ref, VimNode } from './vim-xml.ts';

/**
 * Snapshots that backups are read from. One is named after its backup's token, and says in its
 * description that it is ours: both together prove it, so that what a person calls `rouse-…` is left
 * alone, and so that whoever was killed finds it again.
 */
export interface Snapshot {
  readonly ref: Ref;
  readonly name: string;
  /** The backup that it was made for; undefined: it is not ours. */
  readonly token: string | undefined;
  readonly createdMs: number;
  readonly quiesced: boolean;
}

const prefix = 'rouse-';

export function snapshotName(token: string): string {
  return `${prefix}${token}`;
}

function descriptionOf(token: string): string {
  return `Made by Rouse for backup ${token}; it goes when that backup ends.`;
}

function tokenOf(name: string, description: string): string | undefined {
  const token = name.startsWith(prefix) ? name.slice(prefix.length) : '';
  return token !== '' && description === descriptionOf(token) ? token : undefined;
}

/** All snapshots in VirtualMachineSnapshotInfo, parents first. */
export function snapshotsIn(info: VimNode | undefined): readonly Snapshot[] {
  const found: Snapshot[] = [];
  let level = all(info, 'rootSnapshotList');
  for (let depth = 0; level.length > 0 && depth < vsphereLimits.snapshotDepthMax; depth += 1) {
    for (const tree of level) {
      const ref = refAt(tree, 'snapshot');
      if (ref === undefined) continue;
      const name = entityName(textAt(tree, 'name'));
      found.push({
        ref,
        name,
        token: tokenOf(name, textAt(tree, 'description') ?? ''),
        createdMs: Date.parse(textAt(tree, 'createTime') ?? ''),
        quiesced: flagAt(tree, 'quiesced'),
      });
    }
    level = level.flatMap((tree) => all(tree, 'childSnapshotList'));
  }
  return found;
}

export async function snapshotsOf(client: VimClient, machine: Ref): Promise<readonly Snapshot[]> {
  return snapshotsIn((await readOne(client, machine, ['snapshot'])).get('snapshot'));
}

/** The backup's snapshot: made now, or found where a killed server had it made. */
export interface TakenSnapshot extends Snapshot {
  readonly isFound: boolean;
  /** Why the guest was not told to hold its file systems still, although it was to be. */
  readonly notQuiesced?: string;
}

export async function takeSnapshot(
  client: VimClient,
  machine: Ref,
  token: string,
  quiesce: boolean,
): Promise<TakenSnapshot> {
  await settleCreations(client, machine);
  const there = await findOurs(client, machine, token);
  if (there !== undefined) return { ...there, isFound: true };
  if (!quiesce) return { ...(await create(client, machine, token, false)), isFound: false };
  try {
    return { ...(await create(client, machine, token, true)), isFound: false };
  } catch (error) {
    if (!isGuestsFault(error)) throw error;
    const made = await create(client, machine, token, false);
    return { ...made, isFound: false, notQuiesced: error.message };
  }
}

/** What a snapshot without the guest's help does not meet; what is wrong besides is met again. */
function isGuestsFault(error: unknown): error is RouseError {
  const others = ['NotAuthenticated', 'NoPermission', 'ManagedObjectNotFound', 'TaskInProgress'];
  const late = isRouseError(error, 'time-out');
  return late || (isFault(error) && !others.includes(error.type));
}

async function findOurs(
  client: VimClient,
  machine: Ref,
  token: string,
): Promise<Snapshot | undefined> {
  return (await snapshotsOf(client, machine)).find((one) => one.token === token);
}

async function create(
  client: VimClient,
  machine: Ref,
  token: string,
  quiesce: boolean,
): Promise<Snapshot> {
  const args = [
    leaf('name', snapshotName(token)),
    leaf('description', descriptionOf(token)),
    leaf('memory', false),
    leaf('quiesce', quiesce),
  ];
  const options = {
    what: `the snapshot of ${machine.id}`,
    timeoutMs: vsphereLimits.snapshotMsMax,
  };
  const begin = () => runTask(client, 'CreateSnapshot_Task', machine, args, options);
  let failure: unknown;
  try {
    await whileBusy(client, begin);
  } catch (error) {
    if (!isRouseError(error)) throw error;
    failure = error;
  }
  // Its answer may be lost, and some faults leave a snapshot: what counts is what is there now.
  if (failure !== undefined) await settleCreations(client, machine);
  const made = await findOurs(client, machine, token);
  if (made !== undefined) return made;
  if (failure !== undefined) throw failure;
  throw new RouseError('hypervisor-error', `${client.name} says it made a snapshot; there is none`);
}

/** Waits while another task on the machine runs; the last refusal is thrown. */
export async function whileBusy<T>(
  client: VimClient,
  work: () => Promise<T>,
  signal?: AbortSignal,
): Promise<T> {
  const untilMs = client.clock.monotonic() + vsphereLimits.busyMsMax;
  for (;;) {
    try {
      return await work();
    } catch (error) {
      const isOver = client.clock.monotonic() >= untilMs || signal?.aborted === true;
      if (!isFault(error, 'TaskInProgress') || isOver) throw error;
    }
    await client.clock.sleep(vsphereLimits.busyPauseMs, signal);
  }
}

/** A killed server's task goes on at the manager: only when it has ended, all is there to see. */
async function settleCreations(client: VimClient, machine: Ref): Promise<void> {
  const found = await readOne(client, machine, ['recentTask']);
  const recent = await readExisting(client, refsOf(found.get('recentTask')), ['info']);
  for (const task of recent.filter(isCreating)) {
    const what = `another snapshot of ${machine.id}`;
    const timeoutMs = vsphereLimits.snapshotMsMax;
    await followTask(client, task.ref, { what, timeoutMs }).catch((error: unknown) => {
      if (!isRouseError(error)) throw error;
    });
  }
}

function isCreating(task: Found): boolean {
  const info = task.get('info');
  const state = textAt(info, 'state');
  const kind = `${textAt(info, 'descriptionId') ?? ''} ${textAt(info, 'name') ?? ''}`;
  return (state === 'running' || state === 'queued') && /createSnapshot/iu.test(kind);
}

/** Removes the snapshot of that backup and no other; no error when it, or the machine, is gone. */
export async function removeSnapshot(
  client: VimClient,
  machineId: string,
  token: string,
): Promise<void> {
  const machine = machineRef(machineId);
  try {
    await settleCreations(client, machine);
    for (const { ref, token: own } of await snapshotsOf(client, machine)) {
      if (own === token) await whileBusy(client, () => remove(client, ref));
    }
  } catch (error) {
    if (!isRouseError(error, 'not-found')) throw error;
  }
}

/**
 * A removed snapshot may leave its files in use, because something else held them: the machine then
 * writes to a delta that nobody lists, until its disks are consolidated (VirtualMachineRuntimeInfo
 * .consolidationNeeded). Throws what vCenter says when that cannot be done now.
 */
export async function consolidate(client: VimClient, machineId: string): Promise<void> {
  const machine = machineRef(machineId);
  const [found] = await readExisting(client, [machine], ['name', 'runtime.consolidationNeeded']);
  if (found?.text('runtime.consolidationNeeded') !== 'true') return;
  const name = entityName(found.text('name'));
  const what = `consolidating the disks of ${name}`;
  const timeoutMs = vsphereLimits.removalMsMax;
  const begin = () => runTask(client, 'ConsolidateVMDisks_Task', machine, [], { what, timeoutMs });
  try {
    await whileBusy(client, begin);
  } catch (error) {
    if (!isRouseError(error) || isAway(error)) throw error;
    throw new RouseError(error.code, `the disks of ${name} need consolidation: ${error.message}`, {
      advice:
        'In vCenter: Snapshots, Consolidate. Find out what holds its files if that fails too.',
      cause: error,
    });
  }
}

/** Snapshots that people made on top of it stay. */
async function remove(client: VimClient, snapshot: Ref): Promise<void> {
  const args = [leaf('removeChildren', false), leaf('consolidate', true)];
  try {
    await runTask(client, 'RemoveSnapshot_Task', snapshot, args, {
      what: `removing the snapshot ${snapshot.id}`,
      timeoutMs: vsphereLimits.removalMsMax,
    });
  } catch (error) {
    if (!isFault(error, 'ManagedObjectNotFound')) throw error;
  }
}

import { RouseError, isRouseError } from '../../errors.ts';
import { vsphereLimits } from './limits.ts';
import type { RelocateResult, RelocateSpec, RelocateWatch } from '../port.ts';
import type { VimClient } from './client.ts';
import { disksOf } from './devices.ts';
import type { Disk } from './devices.ts';
import { isFault } from './faults.ts';
import { datastoreRef, machineRef } from './inventory.ts';
import { devicesOf } from './machines.ts';
import { entityName, parseDatastorePath } from './names.ts';
import { readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { cancelTask, followTask, runningTask, runTask } from './tasks.ts';
import type { RunningTask } from './tasks.ts';
import { leaf, node, refOf, reference, refsOf } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

const movePaths = [
  'name',
  'config.files.vmPathName',
  'config.hardware',
  'runtime.host',
  'recentTask',
] as const;

/**
 * Step 12: Storage vMotion, or a copy of a machine that is off. Killed on the way, a task that runs
 * is joined. The rate is the hosts' own: vSphere has no setting for one relocation.
 */
export async function relocate(
  client: VimClient,
  spec: RelocateSpec,
  watch: RelocateWatch,
): Promise<RelocateResult> {
  const machine = machineRef(spec.machineId);
  const target = datastoreRef(spec.toDatastoreId);
  const targetName = await nameOfTarget(client, target);
  for (let round = 0; round < vsphereLimits.relocateRounds; round += 1) {
    const found = await readOne(client, machine, movePaths);
    const moving = disksOf(devicesOf(found)).filter((disk) => liesOn(disk.file, spec));
    const isHomeThere = liesOn(found.text('config.files.vmPathName') ?? '', spec);
    if (moving.length === 0 && !isHomeThere) {
      return { disks: movedDisks(found, targetName) };
    }
    throwIfCancelled(watch.signal, found);
    await refuseUnreachable(client, found, target, targetName);
    await move(client, { found, moving, target, spec }, watch);
  }
  const name = entityName((await readOne(client, machine, ['name'])).text('name'));
  throw new RouseError(
    'hypervisor-error',
    `${name} still lies on ${spec.fromDatastore.name} although its relocation has ended`,
    { advice: 'Look at the events of the machine in vCenter.' },
  );
}

async function nameOfTarget(client: VimClient, target: Ref): Promise<string> {
  try {
    return entityName((await readOne(client, target, ['name'])).text('name'));
  } catch (error) {
    if (!isRouseError(error, 'not-found')) throw error;
    throw new RouseError('not-found', `there is no datastore ${target.id}`);
  }
}

function liesOn(file: string, spec: RelocateSpec): boolean {
  return parseDatastorePath(file)?.datastore === spec.fromDatastore.name;
}

function movedDisks(found: Found, datastore: string): RelocateResult['disks'] {
  return disksOf(devicesOf(found))
    .filter(({ file }) => parseDatastorePath(file)?.datastore === datastore)
    .map(({ name, file, sizeBytes }) => ({ name, path: file, sizeBytes }));
}

/** Said before anything moves: what the host does not see it cannot write to. */
async function refuseUnreachable(
  client: VimClient,
  found: Found,
  target: Ref,
  targetName: string,
): Promise<void> {
  const host = refOf(found.get('runtime.host'));
  if (host === undefined) return;
  const onHost = await readOne(client, host, ['name', 'datastore']);
  if (refsOf(onHost.get('datastore')).some(({ id }) => id === target.id)) return;
  const name = entityName(onHost.text('name'));
  throw new RouseError('wrong-state', `host ${name} does not have datastore ${targetName}`, {
    advice: `Mount ${targetName} on ${name}, or relocate to a datastore that it has.`,
  });
}

interface Move {
  readonly found: Found;
  readonly moving: readonly Disk[];
  readonly target: Ref;
  readonly spec: RelocateSpec;
}

async function move(client: VimClient, parts: Move, watch: RelocateWatch): Promise<void> {
  const { found, moving, target } = parts;
  const name = entityName(found.text('name'));
  const totalBytes = moving.reduce((sum, disk) => sum + disk.sizeBytes, 0);
  const options = {
    what: `relocating ${name}`,
    signal: watch.signal,
    timeoutMs: vsphereLimits.relocateMsMax,
    progress: (percent: number) =>
      watch.progress(Math.floor((totalBytes * percent) / 100), totalBytes),
  };
  try {
    const running = await runningRelocation(client, found);
    if (running?.isOurs === false) throw someoneElses(name, running.user);
    if (running !== undefined) await followTask(client, running.ref, options);
    else
      await runTask(client, 'RelocateVM_Task', found.ref, [relocateSpec(parts, target)], options);
    watch.progress(totalBytes, totalBytes);
  } catch (error) {
    throwIfCancelled(watch.signal, found);
    throw error;
  }
}

/** Schema order: datastore, …, disk. Disks that lie elsewhere are told to stay there. */
function relocateSpec({ found, moving }: Move, target: Ref) {
  const staying = disksOf(devicesOf(found)).filter((disk) => !moving.includes(disk));
  return node('spec', [
    reference('datastore', target),
    ...staying.flatMap((disk) =>
      disk.datastore === undefined
        ? []
        : [node('disk', [leaf('diskId', disk.key), reference('datastore', disk.datastore)])],
    ),
  ]);
}

function runningRelocation(client: VimClient, found: Found): Promise<RunningTask | undefined> {
  return runningTask(client, refsOf(found.get('recentTask')), 'relocate');
}

function someoneElses(name: string, user: string): RouseError {
  const who = user === '' ? 'somebody' : user;
  return new RouseError('busy', `${who} is relocating ${name} already`, {
    advice: 'Wait until that has ended: when it has left the backup, clean-up begins by itself.',
  });
}

/**
 * Ends a copy of ours that nobody follows any more; one that is ended by then is no error. What a
 * person began goes on.
 */
export async function stopRelocation(client: VimClient, id: string): Promise<void> {
  try {
    const found = await readOne(client, machineRef(id), movePaths);
    const running = await runningRelocation(client, found);
    if (running === undefined || !running.isOurs) return;
    await cancelTask(client, running.ref);
    await followTask(client, running.ref, {
      what: `ending the relocation of ${entityName(found.text('name'))}`,
      timeoutMs: vsphereLimits.cancelMsMax,
    });
  } catch (error) {
    const isEnded = isFault(error) && !isFault(error, 'NotAuthenticated', 'NoPermission');
    if (!isEnded && !isRouseError(error, 'not-found')) throw error;
  }
}

function throwIfCancelled(signal: AbortSignal, found: Found): void {
  if (!signal.aborted) return;
  const name = entityName(found.text('name'));
  throw new RouseError('cancelled', `the relocation of ${name} was cancelled`);
}

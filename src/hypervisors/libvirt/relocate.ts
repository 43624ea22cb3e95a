import { posix } from 'node:path';
import { RouseError, isRouseError, toRouseError } from '../../errors.ts';
import { runCommand } from '../../lib/command.ts';
import { libvirtLimits } from '../../limits.ts';
import type { RelocateResult, RelocateSpec, RelocateWatch } from '../port.ts';
import { driverOf } from './configure.ts';
import { domainXml, placeOf, requireLocal } from './context.ts';
import type { DirectoryStore, LibvirtContext } from './context.ts';
import {
  existsOnHost,
  fileName,
  forgetFile,
  qemuNfsUrl,
  rememberFile,
  removeHostFile,
} from './datastores.ts';
import { domainDisks, liesOn, readMark } from './domain.ts';
import type { DatastorePlace, DomainDisk } from './domain.ts';
import { diskSizes, machinesWithDisk, powerState } from './machines.ts';
import { GuestThrottle } from './throttle.ts';
import { attribute, child, element, find, remove, text, writeXml } from './xml.ts';
import type { XmlElement } from './xml.ts';

/**
 * Step 12. A running machine's disks are mirrored, all of them, until each follows the guest's
 * writes; only then is one after the other switched over (pivot), so that a failure before leaves
 * the machine wholly on the export. A stopped machine's disks are copied by qemu-img. Killed
 * anywhere, it goes on: a running copy to our own target is joined, a switched disk is done, and
 * the stored configuration is put right.
 */
export async function relocate(
  context: LibvirtContext,
  spec: RelocateSpec,
  target: DirectoryStore,
  watch: RelocateWatch,
): Promise<RelocateResult> {
  const place = placeOf(context, spec.fromDatastore);
  const rounds = 3;
  for (let round = 0; round < rounds; round += 1) {
    const move = await planMove(context, spec, place, target);
    if (move.disks.length === 0) break;
    if (move.isOn) await relocateLive(context, move, spec.bandwidthBytesPerSecond, watch);
    else await relocateOffline(context, move, spec.bandwidthBytesPerSecond, watch);
    await storeMoved(context, move.machine, move);
  }
  return relocated(context, spec, place, target);
}

interface Move {
  readonly machine: string;
  readonly isOn: boolean;
  readonly place: DatastorePlace;
  readonly disks: readonly MovingDisk[];
}

interface MovingDisk {
  readonly disk: DomainDisk;
  readonly path: string;
  readonly sizeBytes: number;
  /** Runs already; only the stored configuration still names the export. */
  readonly isSwitched: boolean;
}

/** Disks that lie on the export in the running or in the stored configuration. */
async function planMove(
  context: LibvirtContext,
  spec: RelocateSpec,
  place: DatastorePlace,
  target: DirectoryStore,
): Promise<Move> {
  const machine = spec.machineId;
  const isOn = (await powerState(context, machine)) !== 'off';
  const live = await domainXml(context, machine);
  const stored = domainDisks(await domainXml(context, machine, '--inactive'));
  const sizes = await diskSizes(context, machine, live, isOn ? 'on' : 'off');
  const name = text(child(live, 'name'));
  const unique = readMark(live)?.mark ?? text(child(live, 'uuid')).slice(0, 8);
  const disks = domainDisks(live)
    .map((disk) => ({
      disk,
      path: posix.join(target.location, `${fileName(name, disk.name, unique)}.qcow2`),
      sizeBytes: sizes.get(disk.name) ?? 0,
      isSwitched: !liesOn(disk.source, place),
    }))
    .filter(({ disk, isSwitched }) => {
      const inStore = stored.find((other) => other.name === disk.name);
      return !isSwitched || (inStore !== undefined && liesOn(inStore.source, place));
    });
  return { machine, isOn, place, disks };
}

async function relocated(
  context: LibvirtContext,
  spec: RelocateSpec,
  place: DatastorePlace,
  target: DirectoryStore,
): Promise<RelocateResult> {
  const domain = await domainXml(context, spec.machineId);
  const left = domainDisks(domain).filter((disk) => liesOn(disk.source, place));
  if (left.length > 0) {
    const names = left.map((disk) => disk.name).join(', ');
    throw new RouseError('hypervisor-error', `${names} of ${spec.machineId} stayed on the export`);
  }
  const power = await powerState(context, spec.machineId);
  const sizes = await diskSizes(context, spec.machineId, domain, power);
  const disks = domainDisks(domain).flatMap(({ name, path }) =>
    path?.startsWith(`${target.location}/`)
      ? [{ name, path, sizeBytes: sizes.get(name) ?? 0 }]
      : [],
  );
  return { disks };
}

async function relocateLive(
  context: LibvirtContext,
  move: Move,
  bandwidth: number,
  watch: RelocateWatch,
): Promise<void> {
  const moving = move.disks.filter((one) => !one.isSwitched);
  const throttle = new GuestThrottle(context, move.machine, bandwidth);
  const totalBytes = moving.reduce((sum, one) => sum + one.sizeBytes, 0);
  const begun: MovingDisk[] = [];
  let doneBytes = 0;
  try {
    for (const one of moving) {
      throwIfStopped(watch.signal, move.machine);
      await beginCopy(context, move, one, throttle.bytesPerSecond);
      begun.push(one);
      const base = doneBytes;
      await followCopy(context, move, one, throttle, watch.signal, (bytes) =>
        watch.progress(Math.min(base + bytes, totalBytes), totalBytes),
      );
      doneBytes += one.sizeBytes;
    }
    throwIfStopped(watch.signal, move.machine);
    for (const one of moving) await pivot(context, move.machine, one);
    watch.progress(totalBytes, totalBytes);
  } catch (error) {
    // A server that stops leaves the copy running, and joins it when it is back.
    if (watch.signal.aborted && watch.signal.reason === 'shutdown') throw error;
    await giveUp(context, move, begun);
    throw watch.signal.aborted ? stopped(move.machine) : error;
  }
}

async function beginCopy(
  context: LibvirtContext,
  move: Move,
  one: MovingDisk,
  bytesPerSecond: number,
): Promise<void> {
  const running = await mirrorPath(context, move.machine, one.disk.name);
  if (running === one.path) return;
  if (running !== undefined) {
    throw new RouseError('busy', `disk ${one.disk.name} is being copied to ${running} already`, {
      advice: `Wait for that copy, or end it: virsh blockjob ${move.machine} ${one.disk.name} --abort`,
    });
  }
  await claimTarget(context, one.path);
  const values = ['blockcopy', '--domain', move.machine, '--path', one.disk.name];
  values.push('--transient-job', '--bytes', '--bandwidth', String(bytesPerSecond));
  const copy = element('disk', { type: 'file', device: 'disk' }, [
    // libvirt 9 takes only the format from here, and `discard` and `detect_zeroes` of the disk.
    element('driver', { name: 'qemu', type: 'qcow2' }),
    element('source', { file: one.path }),
  ]);
  try {
    await context.virsh.withXml([writeXml(copy)], (file = '') => [...values, '--xml', file]);
  } catch (error) {
    if (isRouseError(error, 'already-exists')) await forgetFile(context, one.path);
    else await removeHostFile(context, one.path);
    throw error;
  }
}

/** Our own leftover is removed; a file that we did not make is never touched. */
async function claimTarget(context: LibvirtContext, path: string): Promise<void> {
  const users = await machinesWithDisk(context, (disk) => disk.path === path);
  if (users.length > 0) {
    throw new RouseError('already-exists', `${path} is in use by ${users.join(', ')}`);
  }
  if (context.state.current.createdFiles.includes(path)) {
    await removeHostFile(context, path);
  } else if (await existsOnHost(context, path)) {
    throw new RouseError('already-exists', `${path} already exists and is none of our copies`, {
      advice: 'Move that file away, or relocate to another datastore.',
    });
  }
  await rememberFile(context, path);
}

async function mirrorPath(
  context: LibvirtContext,
  machine: string,
  disk: string,
): Promise<string | undefined> {
  return attribute(
    find((await mirror(context, machine, disk)) ?? element('none'), 'source'),
    'file',
  );
}

async function mirror(
  context: LibvirtContext,
  machine: string,
  name: string,
): Promise<XmlElement | undefined> {
  const disks = domainDisks(await domainXml(context, machine));
  return child(disks.find((disk) => disk.name === name)?.node, 'mirror');
}

async function followCopy(
  context: LibvirtContext,
  move: Move,
  one: MovingDisk,
  throttle: GuestThrottle,
  signal: AbortSignal,
  progress: (bytes: number) => void,
): Promise<void> {
  for (let poll = 0; ; poll += 1) {
    const job = await blockJob(context, move.machine, one.disk.name);
    if (job === undefined) {
      throw new RouseError(
        'hypervisor-error',
        `the copy of disk ${one.disk.name} ended by itself`,
        {
          advice: 'Look at the free space of the target and at the log of the machine in libvirt.',
        },
      );
    }
    progress(job.total === 0 ? 0 : (one.sizeBytes * job.done) / job.total);
    throwIfStopped(signal, move.machine);
    if (job.done === job.total) {
      const state = attribute(await mirror(context, move.machine, one.disk.name), 'ready');
      if (state === 'yes') return;
    }
    await sleepOrStop(context, signal, move.machine);
    if (poll % libvirtLimits.throttleEveryPolls === libvirtLimits.throttleEveryPolls - 1) {
      await throttle.adjust(one.disk.name);
    }
  }
}

async function blockJob(
  context: LibvirtContext,
  machine: string,
  disk: string,
): Promise<{ done: number; total: number } | undefined> {
  const said = await context.virsh.run(['blockjob', machine, disk, '--raw']);
  const number = (key: string) => Number(new RegExp(`^ ?${key}=(\\d+)`, 'mu').exec(said)?.[1] ?? 0);
  return /type=/u.test(said) ? { done: number('cur'), total: number('end') } : undefined;
}

async function sleepOrStop(
  context: LibvirtContext,
  signal: AbortSignal,
  machine: string,
): Promise<void> {
  try {
    await context.clock.sleep(libvirtLimits.blockJobPollMs, signal);
  } catch {
    throwIfStopped(signal, machine);
  }
}

async function pivot(context: LibvirtContext, machine: string, one: MovingDisk): Promise<void> {
  await context.virsh.run(['blockjob', machine, one.disk.name, '--pivot']);
  for (let waited = 0; waited < libvirtLimits.endingMsMax; waited += libvirtLimits.powerPollMs) {
    const disks = domainDisks(await domainXml(context, machine));
    if (disks.find((disk) => disk.name === one.disk.name)?.path === one.path) return;
    await context.clock.sleep(libvirtLimits.powerPollMs);
  }
  throw new RouseError('time-out', `disk ${one.disk.name} did not switch to ${one.path}`);
}

/** Ends the copies that did not switch and removes their targets; the export stays in use. */
async function giveUp(
  context: LibvirtContext,
  move: Move,
  begun: readonly MovingDisk[],
): Promise<void> {
  for (const one of begun) {
    const values = ['blockjob', move.machine, one.disk.name, '--abort'];
    await context.virsh.runUnless(/./u, values);
    const users = await machinesWithDisk(context, (disk) => disk.path === one.path);
    if (users.length === 0 && context.state.current.createdFiles.includes(one.path)) {
      await removeHostFile(context, one.path);
    }
  }
}

/** Ends a copy that we began and that nobody follows any more. */
export async function stopRelocation(context: LibvirtContext, machine: string): Promise<void> {
  try {
    for (const disk of domainDisks(await domainXml(context, machine))) {
      const path = attribute(find(disk.node, 'mirror', 'source'), 'file');
      if (path === undefined || !context.state.current.createdFiles.includes(path)) continue;
      await context.virsh.runUnless(/./u, ['blockjob', machine, disk.name, '--abort']);
      const users = await machinesWithDisk(context, (other) => other.path === path);
      if (users.length === 0) await removeHostFile(context, path);
    }
  } catch (error) {
    if (!isRouseError(error, 'not-found')) throw error;
  }
}

async function relocateOffline(
  context: LibvirtContext,
  move: Move,
  bandwidth: number,
  watch: RelocateWatch,
): Promise<void> {
  requireLocal(context, 'relocating a machine that is powered off');
  const totalBytes = move.disks.reduce((sum, one) => sum + one.sizeBytes, 0);
  let doneBytes = 0;
  for (const one of move.disks) {
    throwIfStopped(watch.signal, move.machine);
    watch.progress(doneBytes, totalBytes);
    const base = doneBytes;
    await claimTarget(context, one.path);
    try {
      await copyOffline(one, bandwidth, watch.signal, (share) =>
        watch.progress(base + one.sizeBytes * share, totalBytes),
      );
    } catch (error) {
      await removeHostFile(context, one.path);
      throw watch.signal.aborted ? stopped(move.machine) : error;
    }
    doneBytes += one.sizeBytes;
  }
  watch.progress(totalBytes, totalBytes);
}

async function copyOffline(
  one: MovingDisk,
  bandwidth: number,
  signal: AbortSignal,
  progress: (share: number) => void,
): Promise<void> {
  const source = child(one.disk.node, 'source');
  const name = attribute(source, 'name') ?? '';
  const server = attribute(child(source, 'host'), 'name') ?? '';
  const from = one.disk.path ?? qemuNfsUrl(server, name);
  const rate = bandwidth > 0 ? ['-r', String(bandwidth)] : [];
  // -T none and -t none: neither the export's bytes nor the copy push others out of memory.
  const values = ['convert', '-p', ...rate, '-f', 'raw', '-O', 'qcow2', from, one.path];
  const result = await runCommand('qemu-img', values, {
    signal,
    timeoutMs: libvirtLimits.offlineCopyMsMax,
    onOutput: (part) => {
      const percent = [...part.toString().matchAll(/\((\d+\.\d+)\/100%\)/gu)].at(-1)?.[1];
      if (percent !== undefined) progress(Number(percent) / 100);
    },
  });
  if (result.exit !== 0) {
    const code = /No space left/u.test(result.stderr) ? 'disk-full' : 'hypervisor-error';
    throw new RouseError(code, `copying ${one.disk.source}: ${result.stderr}`);
  }
}

/** The stored configuration follows: the machine starts from the new files next time. */
async function storeMoved(context: LibvirtContext, machine: string, move: Move): Promise<void> {
  const stored = await domainXml(context, machine, '--inactive', '--security-info');
  const live = domainDisks(await domainXml(context, machine));
  for (const one of move.disks) {
    const disk = domainDisks(stored).find((candidate) => candidate.name === one.disk.name);
    if (disk === undefined) continue;
    const running = live.find((candidate) => candidate.name === disk.name)?.path;
    const path = move.isOn ? (running ?? one.path) : one.path;
    const driver = driverOf(disk.node, 'qcow2');
    remove(disk.node, 'source', 'driver', 'backingStore', 'mirror');
    disk.node.attributes.set('type', 'file');
    disk.node.children.unshift(driver, element('source', { file: path }));
  }
  try {
    await context.virsh.withXml([writeXml(stored)], (file = '') => ['define', '--file', file]);
  } catch (error) {
    throw isRouseError(error) ? error : toRouseError(error, `define ${machine}`);
  }
}

function throwIfStopped(signal: AbortSignal, machine: string): void {
  if (signal.aborted) throw stopped(machine);
}

function stopped(machine: string): RouseError {
  return new RouseError('cancelled', `the relocation of ${machine} was cancelled`);
}

import { mkdir, readFile, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { RouseError, isRouseError, toRouseError } from '../../errors.ts';
import { fileStamp } from '../../lib/file-stamp.ts';
import { libvirtLimits } from '../../limits.ts';
import type {
  BackupDiskSource,
  BackupSource,
  BackupSpec,
  MachineDetail,
  PowerState,
} from '../port.ts';
import { isAttached } from './attach.ts';
import { domainXml, requireLocal } from './context.ts';
import type { LibvirtContext } from './context.ts';
import { domainDisks } from './domain.ts';
import type { DomainDisk } from './domain.ts';
import { machineDetail } from './machines.ts';
import { attribute, child, childrenNamed, element, find, parseXml, text, writeXml } from './xml.ts';
import type { XmlElement } from './xml.ts';

/**
 * Backups of libvirt machines. Running: one pull-mode job gives every disk, at one moment, over
 * NBD on a unix socket; a checkpoint made at the same moment starts a record of changed blocks
 * (a bitmap in each qcow2 file), which the next backup reads. Stopped: the files themselves.
 * Job, socket, scratch files and checkpoint are named by the token, so that after a crash they are
 * known for ours.
 */
export async function beginBackup(
  context: LibvirtContext,
  hostId: string,
  spec: BackupSpec,
): Promise<BackupSource> {
  if (!/^[\w.-]{1,64}$/u.test(spec.token)) {
    throw new RouseError('bad-request', `${spec.token} cannot name a backup`);
  }
  requireLocal(context, 'reading disks for backup');
  const machine = await machineDetail(context, hostId, spec.machineId);
  const domain = await domainXml(context, machine.id);
  const all = domainDisks(domain).filter(isBackedUp);
  const disks = all.filter((disk) => !isAttached(disk));
  if (disks.length === 0) {
    throw new RouseError('hypervisor-unsupported', `the machine ${machine.name} has no disk`);
  }
  const saved = await machineFiles(machine, domain);
  const attached = all.filter(isAttached).map(({ name }) => name);
  const warnings = [...saved.warnings, ...attached.map(leftOut)];
  const common = {
    token: spec.token,
    machine,
    files: saved.files,
    ...(warnings.length > 0 ? { warnings } : {}),
  };
  if (machine.power === 'off') return { ...common, ...(await offlineSource(machine, disks, spec)) };
  await endOurLeftover(context, machine, spec);
  return { ...common, ...(await beginOnline(context, machine, domain, disks, spec)) };
}

type SourcePart = Omit<BackupSource, 'token' | 'machine' | 'files'>;

function isBackedUp(disk: DomainDisk): boolean {
  return disk.device === 'disk' && !disk.isReadOnly && disk.source !== '';
}

function leftOut(disk: string): string {
  return `disk ${disk} is left out: it shows a backup (file-level recovery) and is not of this machine`;
}

async function machineFiles(
  machine: MachineDetail,
  domain: XmlElement,
): Promise<{ files: BackupSource['files']; warnings: readonly string[] }> {
  const xml = Buffer.from(machine.configuration).toString('base64');
  const files = [{ name: 'domain.xml', base64: xml }];
  const nvram = find(domain, 'os', 'nvram');
  const path = text(nvram) || (attribute(child(nvram, 'source'), 'file') ?? '');
  if (path === '') return { files, warnings: [] };
  try {
    const bytes = await readFile(path);
    if (bytes.length > libvirtLimits.nvramBytesMax) throw new Error('it is too large');
    return {
      files: [...files, { name: 'nvram', base64: bytes.toString('base64') }],
      warnings: [],
    };
  } catch (error) {
    const why = toRouseError(error, path).message;
    return { files, warnings: [`the firmware variables were not saved: ${why}`] };
  }
}

async function offlineSource(
  machine: MachineDetail,
  disks: readonly DomainDisk[],
  spec: BackupSpec,
): Promise<SourcePart> {
  const sources: BackupDiskSource[] = [];
  for (const disk of disks) {
    const { name, path, format, source } = disk;
    if (path === undefined) {
      throw new RouseError('hypervisor-unsupported', `disk ${name} is no file: ${source}`, {
        advice: 'Power the machine on: a running machine is read through its emulator.',
      });
    }
    const stamp = await stampOf(path);
    const access = {
      via: 'file' as const,
      path,
      format,
      ...(stamp === undefined ? {} : { stamp }),
    };
    sources.push({ name, sizeBytes: sizeOf(machine, name), source, access });
  }
  return {
    consistency: 'offline',
    kind: 'full',
    ...(spec.since === undefined ? {} : { fullBecause: `${machine.name} is powered off` }),
    disks: sources,
    // The last checkpoint goes on recording when the machine runs again.
    labels: { ...spec.since, machine: machine.id },
  };
}

/** A file that is missing is reported by whoever reads it, by name. */
function stampOf(path: string): Promise<string | undefined> {
  return fileStamp(path).catch(() => undefined);
}

function sizeOf(machine: MachineDetail, name: string): number {
  return machine.disks.find((disk) => disk.name === name)?.sizeBytes ?? 0;
}

/** A job with our token is left from a crash: ended, with its checkpoint. Any other is foreign. */
async function endOurLeftover(
  context: LibvirtContext,
  machine: MachineDetail,
  spec: BackupSpec,
): Promise<void> {
  const job = await backupJob(context, machine.id);
  if (job === undefined) {
    await dropCheckpoint(context, machine.id, checkpointName(spec.token));
  } else if (isJobOf(job, spec.token)) {
    await endBackup(context, machine.id, spec.token, 'failed');
  } else {
    throw new RouseError('busy', `the machine ${machine.name} is being backed up by another job`, {
      advice: `Wait for it, or end it: virsh domjobabort ${machine.name}`,
      details: { socket: attribute(child(job, 'server'), 'socket') },
    });
  }
  await removeScratch(spec.scratchDirectory, spec.token);
}

async function backupJob(
  context: LibvirtContext,
  machine: string,
): Promise<XmlElement | undefined> {
  const none = /no domain backup job present|not running|not active/u;
  const xml = await context.virsh.runUnless(none, ['backup-dumpxml', '--domain', machine]);
  return xml === undefined ? undefined : parseXml(xml, `the backup job of ${machine}`);
}

function isJobOf(job: XmlElement, token: string): boolean {
  const socket = attribute(child(job, 'server'), 'socket') ?? '';
  return socket.endsWith(`/${socketName(token)}`);
}

function socketName(token: string): string {
  return `rouse-${token}.sock`;
}

const checkpointPrefix = 'rouse-';

function checkpointName(token: string): string {
  return `${checkpointPrefix}${token}`;
}

/** unix(7): sun_path holds 108 bytes with its end. */
const socketPathBytesMax = 107;

async function beginOnline(
  context: LibvirtContext,
  machine: MachineDetail,
  domain: XmlElement,
  disks: readonly DomainDisk[],
  spec: BackupSpec,
): Promise<SourcePart> {
  const socket = join(spec.scratchDirectory, socketName(spec.token));
  if (Buffer.byteLength(socket) > socketPathBytesMax) {
    throw new RouseError('bad-request', `${socket} is too long a path for a socket`);
  }
  await mkdir(spec.scratchDirectory, { recursive: true });
  const chain = await changesSince(context, machine.id, spec);
  const job: Job = { context, machine, disks, spec, socket };
  let fullBecause = chain.fullBecause;
  let recorded = chain.disks;
  const freeze = await freezeGuest(context, machine.id, domain);
  try {
    const failure = await startJob(job, recorded, spec.since?.['checkpoint']);
    if (failure !== undefined) {
      fullBecause = `the record of changes cannot be used: ${failure.message}`;
      recorded = new Set();
      await startJob(job, recorded, undefined);
    }
  } finally {
    if (freeze) await context.virsh.runUnless(/./u, ['domfsthaw', '--domain', machine.id]);
  }
  const isIncremental = recorded.size > 0;
  return {
    consistency: freeze ? 'filesystem' : 'crash',
    kind: isIncremental ? 'incremental' : 'full',
    ...(isIncremental || fullBecause === undefined ? {} : { fullBecause }),
    disks: disks.map((disk) => nbdSource(job, disk, recorded.has(disk.name))),
    labels: labelsOf(job),
  };
}

interface Job {
  readonly context: LibvirtContext;
  readonly machine: MachineDetail;
  readonly disks: readonly DomainDisk[];
  readonly spec: BackupSpec;
  readonly socket: string;
}

function labelsOf(job: Job): Record<string, string> {
  const labels = { machine: job.machine.id };
  const hasRecord = job.disks.some(keepsRecord);
  return hasRecord ? { ...labels, checkpoint: checkpointName(job.spec.token) } : labels;
}

/** Bitmaps live in qcow2 files; raw ones have no place for them. */
function keepsRecord(disk: DomainDisk): boolean {
  return disk.format === 'qcow2';
}

function nbdSource(job: Job, disk: DomainDisk, isIncremental: boolean): BackupDiskSource {
  const access = { via: 'nbd' as const, socket: job.socket, exportName: disk.name };
  const changesContext = `qemu:dirty-bitmap:${bitmapName(disk.name)}`;
  return {
    name: disk.name,
    sizeBytes: sizeOf(job.machine, disk.name),
    source: disk.source,
    access: isIncremental ? { ...access, changesContext } : access,
  };
}

function bitmapName(disk: string): string {
  return `backup-${disk}`;
}

interface Chain {
  /** Disks whose changes since the last saveset are recorded. */
  readonly disks: ReadonlySet<string>;
  readonly fullBecause?: string;
}

async function changesSince(
  context: LibvirtContext,
  machine: string,
  spec: BackupSpec,
): Promise<Chain> {
  const none = new Set<string>();
  if (spec.since === undefined) return { disks: none };
  const name = spec.since['checkpoint'];
  if (name === undefined) {
    return { disks: none, fullBecause: 'the last backup could start no record of changed blocks' };
  }
  if ((spec.since['machine'] ?? machine) !== machine) {
    return { disks: none, fullBecause: 'the last backup was of another machine' };
  }
  if (!(await checkpoints(context, machine)).includes(name)) {
    return { disks: none, fullBecause: `the checkpoint ${name} of the last backup is gone` };
  }
  const xml = await context.virsh.run(['checkpoint-dumpxml', machine, name]);
  const recorded = childrenNamed(child(parseXml(xml, `checkpoint ${name}`), 'disks'), 'disk')
    .filter((disk) => attribute(disk, 'checkpoint') === 'bitmap')
    .map((disk) => attribute(disk, 'name') ?? '');
  return { disks: new Set(recorded) };
}

/** Jobs and checkpoints that are named as `beginBackup` names them. */
export async function backupTraces(
  context: LibvirtContext,
  machine: string,
  power: PowerState,
): Promise<readonly { readonly token: string; readonly kind: 'job' | 'checkpoint' }[]> {
  const job = power === 'off' ? undefined : await backupJob(context, machine);
  const socket = attribute(child(job, 'server'), 'socket') ?? '';
  const running = /\/rouse-([\w.-]+)\.sock$/u.exec(socket)?.[1];
  const made = (await checkpoints(context, machine))
    .filter((name) => name.startsWith(checkpointPrefix))
    .map((name) => ({ token: name.slice(checkpointPrefix.length), kind: 'checkpoint' as const }));
  return running === undefined ? made : [{ token: running, kind: 'job' }, ...made];
}

async function checkpoints(context: LibvirtContext, machine: string): Promise<string[]> {
  const said = await context.virsh.run(['checkpoint-list', '--domain', machine, '--name']);
  const names = said.split('\n').map((name) => name.trim());
  return names.filter((name) => name !== '');
}

/** Undefined: it runs. An error: the incremental was refused, and nothing was begun. */
async function startJob(
  job: Job,
  recorded: ReadonlySet<string>,
  since: string | undefined,
): Promise<RouseError | undefined> {
  const { context, machine, disks } = job;
  const known = disks.filter((disk) => recorded.has(disk.name));
  const backup = writeXml(backupXml(job, recorded, since));
  const checkpoint = disks.some(keepsRecord) ? writeXml(checkpointXml(job)) : undefined;
  try {
    await runBackupBegin(job, backup, checkpoint);
    return undefined;
  } catch (error) {
    if (known.length > 0 && isRouseError(error, 'hypervisor-error')) return error;
    if (isRouseError(error, 'busy')) {
      const message = `another job of ${machine.name} is running: ${error.message}`;
      throw new RouseError('busy', message, { details: { uri: context.virsh.uri } });
    }
    throw error;
  }
}

async function runBackupBegin(
  job: Job,
  backup: string,
  checkpoint: string | undefined,
): Promise<void> {
  const documents = checkpoint === undefined ? [backup] : [backup, checkpoint];
  await job.context.virsh.withXml(documents, (backupFile = '', checkpointFile) => [
    'backup-begin',
    ...['--domain', job.machine.id, '--backupxml', backupFile],
    ...(checkpointFile === undefined ? [] : ['--checkpointxml', checkpointFile]),
  ]);
}

function backupXml(job: Job, recorded: ReadonlySet<string>, since: string | undefined): XmlElement {
  const wanted = new Set(job.disks.map((disk) => disk.name));
  const disks = job.disks.map((disk) => {
    const isIncremental = recorded.has(disk.name) && since !== undefined;
    const scratch = join(job.spec.scratchDirectory, scratchName(job.spec.token, disk.name));
    return element(
      'disk',
      {
        name: disk.name,
        backup: 'yes',
        type: 'file',
        exportname: disk.name,
        ...(isIncremental
          ? { backupmode: 'incremental', incremental: since, exportbitmap: bitmapName(disk.name) }
          : { backupmode: 'full' }),
      },
      [element('driver', { type: 'qcow2' }), element('scratch', { file: scratch })],
    );
  });
  const others = job.machine.disks
    .filter((disk) => !wanted.has(disk.name))
    .map((disk) => element('disk', { name: disk.name, backup: 'no' }));
  const server = element('server', { transport: 'unix', socket: job.socket });
  return element('domainbackup', { mode: 'pull' }, [
    ...(recorded.size > 0 && since !== undefined ? [element('incremental', {}, [since])] : []),
    server,
    element('disks', {}, [...disks, ...others]),
  ]);
}

function scratchName(token: string, disk: string): string {
  return `rouse-${token}-${disk}.scratch`;
}

function checkpointXml(job: Job): XmlElement {
  const wanted = new Set(job.disks.filter(keepsRecord).map((disk) => disk.name));
  const disks = job.machine.disks.map((disk) =>
    element('disk', { name: disk.name, checkpoint: wanted.has(disk.name) ? 'bitmap' : 'no' }),
  );
  return element('domaincheckpoint', {}, [
    element('name', {}, [checkpointName(job.spec.token)]),
    element('disks', {}, disks),
  ]);
}

/** True when the guest's agent has frozen its file systems. Without an agent: not frozen. */
async function freezeGuest(
  context: LibvirtContext,
  machine: string,
  domain: XmlElement,
): Promise<boolean> {
  const agent = childrenNamed(child(domain, 'devices'), 'channel')
    .map((channel) => child(channel, 'target'))
    .find((target) => attribute(target, 'name') === 'org.qemu.guest_agent.0');
  if (attribute(agent, 'state') !== 'connected') return false;
  return (await context.virsh.runUnless(/./u, ['domfsfreeze', '--domain', machine])) !== undefined;
}

/**
 * Ends the job. Stored: older checkpoints of ours go, the new one is where the next backup goes on
 * from. Failed: the new one goes, and libvirt adds its record to the last stored one's.
 */
export async function endBackup(
  context: LibvirtContext,
  machine: string,
  token: string,
  outcome: 'stored' | 'failed',
): Promise<void> {
  try {
    const job = await backupJob(context, machine);
    if (job !== undefined && isJobOf(job, token)) {
      await context.virsh.runUnless(/no job is active|not running/u, [
        'domjobabort',
        '--domain',
        machine,
      ]);
      await waitForEnd(context, machine);
      await removeScratchOf(job, token);
    }
    const ours = checkpointName(token);
    const all = await checkpoints(context, machine);
    if (outcome === 'failed') {
      await dropCheckpoint(context, machine, ours);
    } else if (all.includes(ours)) {
      const older = all.filter((name) => name.startsWith(checkpointPrefix) && name !== ours);
      for (const name of older) await dropCheckpoint(context, machine, name);
    }
  } catch (error) {
    if (!isRouseError(error, 'not-found')) throw error;
  }
}

async function waitForEnd(context: LibvirtContext, machine: string): Promise<void> {
  for (let waited = 0; waited < libvirtLimits.endingMsMax; waited += libvirtLimits.powerPollMs) {
    if ((await backupJob(context, machine)) === undefined) return;
    await context.clock.sleep(libvirtLimits.powerPollMs);
  }
  throw new RouseError('time-out', `the backup job of ${machine} does not end`);
}

/** A checkpoint of a stopped machine cannot be deleted: the next stored backup does it. */
async function dropCheckpoint(
  context: LibvirtContext,
  machine: string,
  name: string,
): Promise<void> {
  if (!(await checkpoints(context, machine)).includes(name)) return;
  const values = ['checkpoint-delete', '--domain', machine, '--checkpointname', name];
  const said = await context.virsh
    .runUnless(/inactive domain|not running/u, values)
    .catch((error: unknown) => {
      if (isRouseError(error, 'hypervisor-error') && /bitmap/iu.test(error.message))
        return undefined;
      throw error;
    });
  if (said !== undefined) return;
  // Without its bitmap only libvirt's note is left.
  await context.virsh.runUnless(/./u, [...values, '--metadata']);
}

async function removeScratchOf(job: XmlElement, token: string): Promise<void> {
  const socket = attribute(child(job, 'server'), 'socket') ?? '';
  const directory = socket.slice(0, socket.lastIndexOf('/'));
  if (directory !== '') await removeScratch(directory, token);
}

async function removeScratch(directory: string, token: string): Promise<void> {
  const names = await readdir(directory).catch(() => []);
  for (const name of names) {
    const isOurs = name === socketName(token) || name.startsWith(`rouse-${token}-`);
    if (isOurs) await rm(join(directory, name), { force: true });
  }
}

import { RouseError, isRouseError } from '../../errors.ts';
import { parseVmx } from '../../formats/vmx.ts';
import type {
  BackupDiskSource,
  BackupPlace,
  BackupSource,
  BackupSpec,
  MachineDetail,
} from '../port.ts';
import type { VimClient } from './client.ts';
import { datastoreFile } from './configuration.ts';
import { disksOf } from './devices.ts';
import { frozenDisks, labelsOf, leftOutWarnings } from './frozen-disks.ts';
import type { FrozenDisk } from './frozen-disks.ts';
import { incrementalDisks } from './incremental.ts';
import type { Point } from './incremental.ts';
import { machineRef } from './inventory.ts';
import { devicesOf, machineDetail } from './machines.ts';
import { entityName, parseDatastorePath } from './names.ts';
import { readExisting, readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { removeLeft } from './left-snapshots.ts';
import { consolidate, removeSnapshot, snapshotsIn, takeSnapshot } from './snapshots.ts';
import type { TakenSnapshot } from './snapshots.ts';
import { switchOnTracking, trackingPaths } from './tracking.ts';
import { refOf, refsOf, textAt } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

/**
 * Backups of vSphere machines, running or not: a snapshot holds their disks still, named after the
 * backup's token so that whoever was killed finds it again. A full backup downloads the disks under
 * an export lease; an incremental one asks change tracking what changed since the change ids that
 * the last saveset has in its labels, and reads that from the frozen flat files. Reading is the
 * proxy's (reader.ts), with a pass. In any doubt everything is read, and the source says why.
 */
export async function beginBackup(client: VimClient, spec: BackupSpec): Promise<BackupSource> {
  if (!/^[\w.-]{1,64}$/u.test(spec.token)) {
    throw new RouseError('bad-request', `${spec.token} cannot name a backup`);
  }
  const machine = await machineDetail(client, spec.machineId);
  const removed = await removeLeft(client, machine, spec);
  const found = await readOne(client, machineRef(machine.id), backupPaths);
  const snapshots = snapshotsIn(found.get('snapshot'));
  const all = disksOf(devicesOf(found));
  const saved = await machineFiles(client, found, machine.configuration);
  const hasSnapshots = snapshots.length > 0;
  const isOurs = snapshots.some(({ token }) => token === spec.token);
  const untracked = isOurs ? undefined : await switchOnTracking(client, found, hasSnapshots);
  const mayQuiesce = isToolsRunning(found) && machine.power === 'on';
  const snapshot = await takeSnapshot(client, found.ref, spec.token, mayQuiesce);
  const disks = await frozenDisks(client, snapshot.ref);
  const warnings = [
    ...removed,
    ...leftOutWarnings(all),
    ...saved.warnings,
    ...(untracked === undefined ? [] : [untracked]),
    ...notFrozen(machine, mayQuiesce, snapshot),
  ];
  if (disks.length === 0) {
    const message = `the machine ${machine.name} has no disk that a snapshot holds`;
    throw new RouseError('hypervisor-unsupported', message, { advice: warnings.join('; ') });
  }
  const part = await sourceOf({ client, found, machine, snapshot, disks, spec });
  return {
    ...part,
    token: spec.token,
    machine,
    consistency: machine.power === 'off' ? 'offline' : snapshot.quiesced ? 'filesystem' : 'crash',
    ...(snapshot.isFound && Number.isFinite(snapshot.createdMs)
      ? { takenAtMs: snapshot.createdMs }
      : {}),
    files: saved.files,
    warnings,
  };
}

const backupPaths = [
  ...trackingPaths,
  'name',
  'snapshot',
  'config.hardware',
  'config.instanceUuid',
  'config.files.vmPathName',
  'config.firmware',
  'guest.toolsRunningStatus',
] as const;

function isToolsRunning(found: Found): boolean {
  return found.text('guest.toolsRunningStatus') === 'guestToolsRunning';
}

/** Why a running guest's file systems were not held still. */
function notFrozen(
  machine: MachineDetail,
  mayQuiesce: boolean,
  snapshot: TakenSnapshot,
): readonly string[] {
  if (machine.power !== 'on' || snapshot.quiesced) return [];
  const because = mayQuiesce
    ? (snapshot.notQuiesced ?? 'the snapshot was made without it')
    : 'VMware Tools do not run in it';
  return [`the file systems of ${machine.name} were not frozen: ${because}`];
}

type SourcePart = Pick<BackupSource, 'kind' | 'fullBecause' | 'disks' | 'labels'>;

async function sourceOf(point: Point): Promise<SourcePart> {
  const { client, found, machine, disks, snapshot, spec } = point;
  const { content } = await client.service();
  const origin = {
    machine: machine.id,
    'vsphere.manager': textAt(content, 'about.instanceUuid') ?? '',
    'vsphere.instance': found.text('config.instanceUuid') ?? '',
  };
  const labels = { ...origin, ...labelsOf(disks) };
  const whole = disks.map((disk): BackupDiskSource => wholeDisk(disk, snapshot.ref));
  if (spec.since === undefined) return { kind: 'full', disks: whole, labels };
  const changed = await incrementalDisks(point, origin, spec.since);
  if ('because' in changed) {
    return { kind: 'full', fullBecause: changed.because, disks: whole, labels };
  }
  return { kind: 'incremental', disks: changed.disks, labels };
}

function wholeDisk(disk: FrozenDisk, snapshot: Ref): BackupDiskSource {
  const { name, sizeBytes, file, key } = disk;
  return { name, sizeBytes, source: file, access: { via: 'nfc', snapshot: snapshot.id, key } };
}

/** The same snapshot, downloaded whole. */
export function readWhole(source: BackupSource, because: string): BackupSource {
  const disks = source.disks.map((disk): BackupDiskSource => {
    const { access } = disk;
    if (access.via !== 'folder') return disk;
    return { ...disk, access: { via: 'nfc', snapshot: access.snapshot, key: access.key } };
  });
  return { ...source, kind: 'full', fullBecause: because, disks };
}

/** The .vmx, and the firmware's variables that lie beside it under the name that it says. */
async function machineFiles(
  client: VimClient,
  found: Found,
  configuration: string,
): Promise<{ files: BackupSource['files']; warnings: readonly string[] }> {
  const base64 = Buffer.from(configuration).toString('base64');
  const files = [{ name: 'machine.vmx', base64 }];
  const name = parseVmx(configuration, 'the .vmx').get('nvram') ?? '';
  const home = (found.text('config.files.vmPathName') ?? '').replace(/[^/]*$/u, '');
  try {
    const bytes =
      name === '' || name.includes('/')
        ? undefined
        : await datastoreFile(client, found.ref, `${home}${name}`);
    if (bytes !== undefined) {
      const nvram = { name: 'nvram', base64: bytes.toString('base64') };
      return { files: [...files, nvram], warnings: [] };
    }
  } catch (error) {
    if (!isRouseError(error)) throw error;
    return { files, warnings: [`the firmware variables were not saved: ${error.message}`] };
  }
  // Under BIOS it holds little but the order of boot devices.
  const isMissed = found.text('config.firmware') === 'efi';
  const missed = `the firmware variables were not saved: there is no ${name || '.nvram'}`;
  return { files, warnings: isMissed ? [missed] : [] };
}

/** Of a stored backup, disks that cannot be consolidated are told; each later backup tries again. */
export async function endBackup(
  client: VimClient,
  machineId: string,
  token: string,
  outcome: 'stored' | 'failed',
): Promise<void> {
  await removeSnapshot(client, machineId, token);
  try {
    await consolidate(client, machineId);
  } catch (error) {
    // An undo that can never succeed would keep the machine from being backed up at all.
    if (!isRouseError(error) || outcome === 'stored') throw error;
  }
}

/** The machine's host, and the datastores of its disks. */
export async function backupPlaces(
  client: VimClient,
  machineId: string,
): Promise<readonly BackupPlace[]> {
  const paths = ['runtime.host', 'datastore', 'config.hardware'];
  const found = await readOne(client, machineRef(machineId), paths);
  const host = refOf(found.get('runtime.host'));
  const named = new Set(
    disksOf(devicesOf(found)).map(({ file }) => parseDatastorePath(file)?.datastore ?? ''),
  );
  const stores = await readExisting(client, refsOf(found.get('datastore')), ['name']);
  const hosts = host === undefined ? [] : await readExisting(client, [host], ['name']);
  const places = [
    ...hosts.map((one) => ({ kind: 'host' as const, one })),
    ...stores.map((one) => ({ kind: 'datastore' as const, one })),
  ].map(({ kind, one }) => ({ kind, id: one.ref.id, name: entityName(one.text('name')) }));
  return places.filter(({ kind, name }) => kind === 'host' || named.has(name));
}

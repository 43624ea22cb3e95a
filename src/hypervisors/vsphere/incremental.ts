import { isRouseError } from '../../errors.ts';
import { formatBytes } from '../../lib/text.ts';
import type { BackupDiskSource, BackupSpec, MachineDetail } from '../port.ts';
import type { VimClient } from './client.ts';
import { changedPage } from './changed-areas.ts';
import { folderUrl } from './configuration.ts';
import { isAway } from './faults.ts';
import { flatFileOf, knownDisks } from './frozen-disks.ts';
import type { FrozenDisk, KnownDisk } from './frozen-disks.ts';
import { parseDatastorePath } from './names.ts';
import type { Found } from './properties.ts';
import { readRange } from './ranges.ts';
import type { TakenSnapshot } from './snapshots.ts';

/** A machine, and the snapshot that holds its disks still. */
export interface Point {
  readonly client: VimClient;
  readonly found: Found;
  readonly machine: MachineDetail;
  readonly snapshot: TakenSnapshot;
  readonly disks: readonly FrozenDisk[];
  readonly spec: BackupSpec;
}

/** Disks of which only changes are read, or why all of them have to be read whole. */
export type Incremental =
  | { readonly disks: readonly BackupDiskSource[] }
  | { readonly because: string };

/**
 * Everything that would make a mix of two states, or a read that fails, is looked at here, before a
 * byte is read; each reason is a sentence for the administrator.
 */
export async function incrementalDisks(
  point: Point,
  origin: Readonly<Record<string, string>>,
  since: Readonly<Record<string, string>>,
): Promise<Incremental> {
  const other = otherOrigin(origin, since);
  if (other !== undefined) return { because: other };
  let before: readonly KnownDisk[];
  try {
    before = knownDisks(since);
  } catch (error) {
    if (!isRouseError(error)) throw error;
    return { because: error.message };
  }
  const because = before.length === 0 ? noIds : differentDisks(point.disks, before);
  if (because !== undefined) return { because };
  const disks: BackupDiskSource[] = [];
  for (const disk of point.disks) {
    const known = before.find(({ name }) => name === disk.name);
    const judged = await changedDisk(point, disk, known?.changeId ?? '');
    if (typeof judged === 'string') return { because: judged };
    disks.push(judged);
  }
  return { disks };
}

const noIds = 'the last backup kept no change ids';

function otherOrigin(
  origin: Readonly<Record<string, string>>,
  since: Readonly<Record<string, string>>,
): string | undefined {
  const differs = (label: string) =>
    since[label] !== undefined && (since[label] ?? '') !== (origin[label] ?? '');
  if (differs('vsphere.manager')) return 'the last backup was made through another vCenter';
  if (differs('machine') || differs('vsphere.instance')) {
    return 'the last backup was of another machine';
  }
  return undefined;
}

function differentDisks(
  now: readonly FrozenDisk[],
  before: readonly KnownDisk[],
): string | undefined {
  for (const { name } of before) {
    if (now.some((disk) => disk.name === name)) continue;
    return `disk ${name} of the last backup is not there any more`;
  }
  for (const disk of now) {
    const known = before.find(({ name }) => name === disk.name);
    if (known === undefined) return `disk ${disk.name} was added since the last backup`;
    if (known.sizeBytes !== disk.sizeBytes) {
      const sizes = `${formatBytes(known.sizeBytes)} at the last backup and is ${formatBytes(disk.sizeBytes)} now`;
      return `disk ${disk.name} was ${sizes}`;
    }
    if (known.key !== disk.key || known.uuid !== disk.uuid) {
      return `disk ${disk.name} is another one than at the last backup`;
    }
    const chain = brokenChain(disk, known);
    if (chain !== undefined) return chain;
  }
  return undefined;
}

/** A change id is the tracking's own id, a slash, and a number that grows. */
function brokenChain(disk: FrozenDisk, known: KnownDisk): string | undefined {
  const { name, changeId } = disk;
  if (known.changeId === undefined)
    return `change tracking of disk ${name} was off at the last backup`;
  if (changeId === undefined) return `change tracking of disk ${name} does not run`;
  const idOf = (text: string) => text.slice(0, text.lastIndexOf('/'));
  if (idOf(changeId) !== idOf(known.changeId)) {
    return `change tracking of disk ${name} began anew since the last backup`;
  }
  return undefined;
}

/** The access to its changes; a string: why there is none. */
async function changedDisk(
  { client, found, snapshot }: Point,
  disk: FrozenDisk,
  changeId: string,
): Promise<BackupDiskSource | string> {
  const { name, key, sizeBytes } = disk;
  const flat = flatFileOf(disk);
  if ('because' in flat) return flat.because;
  const place = parseDatastorePath(flat.file);
  if (place === undefined) return `disk ${name} is on no datastore that can be named: ${flat.file}`;
  const question = { machine: found.ref, snapshot: snapshot.ref, key, name, sizeBytes, changeId };
  try {
    const first = await changedPage(client, question, 0);
    const [area] = first.areas;
    if (area !== undefined && area.length === sizeBytes && sizeBytes > wholeBytesMin) {
      return `change tracking says that all of disk ${name} changed`;
    }
    const path = await folderUrl(client, found.ref, place);
    const sector = Buffer.alloc(Math.min(512, sizeBytes));
    await readRange(client, path, { offset: 0, sizeBytes }, sector);
    const at = { machine: found.ref.id, snapshot: snapshot.ref.id, key, path, changeId };
    return { name, sizeBytes, source: disk.file, access: { via: 'folder', ...at } };
  } catch (error) {
    if (!isRouseError(error) || isAway(error) || passing.has(error.code)) throw error;
    if (error.code === 'corrupt-data') return error.message;
    return `disk ${name} cannot be read in part: ${error.message}`;
  }
}

/** A disk below this is read as fast whole, and may well have changed everywhere. */
const wholeBytesMin = 16 * 1024 * 1024;

/** Away or busy is no doubt about the changes: the step is tried again. */
const passing: ReadonlySet<string> = new Set(['unauthorised', 'busy', 'cancelled']);

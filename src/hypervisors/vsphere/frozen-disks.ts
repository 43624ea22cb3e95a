import { RouseError } from '../../errors.ts';
import type { VimClient } from './client.ts';
import { disksOf } from './devices.ts';
import type { Disk } from './devices.ts';
import { parseDatastorePath } from './names.ts';
import { readOne } from './properties.ts';
import type { Found } from './properties.ts';
import { at, textAt } from './vim-xml.ts';
import type { Ref } from './vim-xml.ts';

/** A disk as a snapshot holds it still. */
export interface FrozenDisk extends Disk {
  /** Where change tracking stands; undefined: it does not run. */
  readonly changeId: string | undefined;
  readonly uuid: string;
}

/** Disks in the order of the machine's hardware, as it was when the snapshot was made. */
export async function frozenDisks(
  client: VimClient,
  snapshot: Ref,
): Promise<readonly FrozenDisk[]> {
  const found = await readOne(client, snapshot, ['config.hardware']);
  return disksOf(devicesIn(found))
    .filter((disk) => leftOutBecause(disk) === undefined)
    .map((disk) => ({
      ...disk,
      changeId: textAt(disk.backing, 'changeId')?.trim() || undefined,
      uuid: textAt(disk.backing, 'uuid') ?? '',
    }));
}

/** `device` of config.hardware repeats beside its other elements. */
function devicesIn(found: Found) {
  const hardware = found.get('config.hardware');
  if (hardware === undefined) return undefined;
  return { ...hardware, children: hardware.children.filter(({ name }) => name === 'device') };
}

/** Undefined: snapshots take it along. */
function leftOutBecause(disk: Disk): string | undefined {
  const isRaw = disk.backingType.includes('RawDiskMapping');
  if (isRaw && textAt(disk.backing, 'compatibilityMode') === 'physicalMode') {
    return 'it is a raw device in physical mode';
  }
  if (disk.diskMode.startsWith('independent_')) {
    return `its mode is ${disk.diskMode.replace('_', '-')}`;
  }
  return undefined;
}

/** One sentence for each disk of the machine that is not in the backup. */
export function leftOutWarnings(disks: readonly Disk[]): readonly string[] {
  return disks.flatMap((disk) => {
    const because = leftOutBecause(disk);
    // What file-level recovery shows to a machine is no disk of its own.
    const isShown = parseDatastorePath(disk.file)?.datastore.startsWith('rouse-') === true;
    if (because === undefined || isShown) return [];
    return [`disk ${disk.name} is not backed up: ${because}, and snapshots leave it out`];
  });
}

/** What is kept of a disk with its saveset, and compared at the next backup. */
export interface KnownDisk {
  readonly name: string;
  readonly key: number;
  readonly sizeBytes: number;
  readonly uuid: string;
  readonly changeId: string | undefined;
}

const diskLabel = 'vsphere.disk.';

export function labelsOf(disks: readonly FrozenDisk[]): Record<string, string> {
  return Object.fromEntries(
    disks.map(({ name, key, sizeBytes, uuid, changeId }) => [
      `${diskLabel}${name}`,
      JSON.stringify({ key, sizeBytes, uuid, ...(changeId === undefined ? {} : { changeId }) }),
    ]),
  );
}

/** Labels come back from a vault, where anything may have been written. */
export function knownDisks(labels: Readonly<Record<string, string>>): readonly KnownDisk[] {
  return Object.entries(labels).flatMap(([label, text]) => {
    if (!label.startsWith(diskLabel)) return [];
    const name = label.slice(diskLabel.length);
    const { key, sizeBytes, uuid, changeId } = objectIn(text, name);
    return [
      {
        name,
        key: Number(key),
        sizeBytes: Number(sizeBytes),
        uuid: String(uuid ?? ''),
        changeId: typeof changeId === 'string' ? changeId : undefined,
      },
    ];
  });
}

function objectIn(text: string, name: string): Readonly<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null) return { ...value };
  } catch (error) {
    throw new RouseError('corrupt-data', `the label of disk ${name} cannot be read`, {
      cause: error,
    });
  }
  throw new RouseError('corrupt-data', `the label of disk ${name} is none`);
}

/** The flat file that holds the disk as the snapshot has it; a reason in words when there is none. */
export function flatFileOf(disk: FrozenDisk): { readonly file: string } | { because: string } {
  const isFlat = disk.backingType === 'VirtualDiskFlatVer2BackingInfo';
  const isBase = at(disk.backing, 'parent') === undefined && !/-\d{6}\.vmdk$/u.test(disk.file);
  if (!isBase) {
    return { because: `disk ${disk.name} has older snapshots, so its data lies in several files` };
  }
  if (!isFlat || textAt(disk.backing, 'split') === 'true' || !/\.vmdk$/iu.test(disk.file)) {
    const kind = disk.backingType.replace(/^VirtualDisk|BackingInfo$/gu, '');
    return { because: `disk ${disk.name} is no single flat file (${kind})` };
  }
  return { file: disk.file.replace(/\.vmdk$/iu, '-flat.vmdk') };
}

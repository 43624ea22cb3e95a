import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';

/**
 * The text that describes a VMDK: what it is made of, its content id, its geometry
 * (VMware, "Virtual Disk Format 5.0", "The Descriptor File").
 */
export interface VmdkDescriptor {
  /** Changes whenever the content does; a child names it as its parent's. */
  readonly contentId: string;
  /** `ffffffff`: no parent. */
  readonly parentContentId: string;
  readonly createType: string;
  readonly parentFileName: string | undefined;
  readonly extents: readonly VmdkExtent[];
  /** The disk database: `ddb.adapterType` and the like, without quotes. */
  readonly database: ReadonlyMap<string, string>;
}

export interface VmdkExtent {
  readonly access: 'RW' | 'RDONLY' | 'NOACCESS';
  readonly sectors: number;
  /** `FLAT`, `VMFS`, `SPARSE`, `ZERO`, ...: upper case, as written. */
  readonly type: string;
  readonly fileName: string | undefined;
  /** Sectors into the extent's file (FLAT only). */
  readonly offsetSectors: number;
}

export const noParent = 'ffffffff';
export const sectorBytes = 512;

export type VmdkAdapter = 'lsilogic' | 'buslogic' | 'ide' | 'pvscsi';

export interface FlatDescriptorSpec {
  /** Of the flat file; rounded up to whole sectors, as the file has to be. */
  readonly sizeBytes: number;
  /** Beside the descriptor: `vda-flat.vmdk`. */
  readonly flatFileName: string;
  readonly adapter: VmdkAdapter;
  /** RFC 9562 text form; every copy of a disk needs its own. */
  readonly uuid: string;
  /** 32 bits. */
  readonly cid: number;
  /** Default 14 (vSphere 6.7): the oldest host that understands it decides. */
  readonly hardwareVersion?: number;
}

/** The descriptor of one flat disk as ESXi writes it: sparse kinds do not run there. */
export function flatDescriptor(spec: FlatDescriptorSpec): string {
  checkFlatSpec(spec);
  const sectors = Math.ceil(spec.sizeBytes / sectorBytes);
  const geometry = geometryOf(sectors, spec.adapter);
  return [
    '# Disk DescriptorFile',
    'version=1',
    'encoding="UTF-8"',
    `CID=${contentIdText(spec.cid)}`,
    `parentCID=${noParent}`,
    'createType="vmfs"',
    '',
    '# Extent description',
    `RW ${sectors} VMFS "${spec.flatFileName}"`,
    '',
    '# The Disk Data Base',
    '#DDB',
    '',
    `ddb.adapterType = "${spec.adapter}"`,
    `ddb.geometry.cylinders = "${geometry.cylinders}"`,
    `ddb.geometry.heads = "${geometry.heads}"`,
    `ddb.geometry.sectors = "${geometry.sectors}"`,
    'ddb.thinProvisioned = "1"',
    `ddb.uuid = "${databaseUuid(spec.uuid)}"`,
    `ddb.virtualHWVersion = "${spec.hardwareVersion ?? 14}"`,
    '',
  ].join('\n');
}

function checkFlatSpec(spec: FlatDescriptorSpec): void {
  if (!Number.isSafeInteger(spec.sizeBytes) || spec.sizeBytes <= 0) {
    throw new RouseError('bad-request', `${spec.flatFileName}: a disk of ${spec.sizeBytes} bytes`);
  }
  if (spec.flatFileName === '' || /["/\\\r\n\0]/.test(spec.flatFileName)) {
    throw new RouseError(
      'bad-request',
      `${JSON.stringify(spec.flatFileName)} cannot name the flat file of a VMDK`,
      { advice: 'Use a plain file name without quotes, slashes and line ends.' },
    );
  }
}

function contentIdText(cid: number): string {
  // ffffffff means "no parent", fffffffe "never written": neither may be an own id.
  const id = cid >>> 0;
  return (id >= 0xfffffffe ? 0xfffffffd : id).toString(16).padStart(8, '0');
}

/** `60 00 C2 9d ...-...`: sixteen bytes, a dash in the middle. */
function databaseUuid(uuid: string): string {
  const hex = uuid.replaceAll('-', '').toLowerCase();
  if (!/^[0-9a-f]{32}$/.test(hex)) {
    throw new RouseError('bad-request', `${JSON.stringify(uuid)} is not a UUID`);
  }
  const bytes = hex.match(/../g) ?? [];
  return `${bytes.slice(0, 8).join(' ')}-${bytes.slice(8).join(' ')}`;
}

interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectors: number;
}

/** As ESXi lays disks out: IDE by its own limits, SCSI in three sizes. */
function geometryOf(sectors: number, adapter: VmdkAdapter): Geometry {
  if (adapter === 'ide') {
    return { cylinders: Math.min(16383, Math.ceil(sectors / (16 * 63))), heads: 16, sectors: 63 };
  }
  const GiB = 2 ** 30 / sectorBytes;
  const [heads, perTrack] = sectors < GiB ? [64, 32] : sectors < 2 * GiB ? [128, 32] : [255, 63];
  return {
    cylinders: Math.max(1, Math.floor(sectors / (heads * perTrack))),
    heads,
    sectors: perTrack,
  };
}

/** True for text that begins as a descriptor does: comments, then `version=`. */
export function looksLikeDescriptor(head: Uint8Array): boolean {
  const text = Buffer.from(head.buffer, head.byteOffset, head.length).toString('latin1');
  for (const line of text.split(/\r?\n/)) {
    const trimmed = line.trim();
    if (/^#\s*Disk DescriptorFile/i.test(trimmed)) return true;
    if (trimmed === '' || trimmed.startsWith('#')) continue;
    return /^version\s*=\s*\d/.test(trimmed);
  }
  return false;
}

/** Reads a descriptor; `where` names it in errors. Unknown lines are passed over. */
export function parseDescriptor(text: string, where: string): VmdkDescriptor {
  const header = new Map<string, string>();
  const database = new Map<string, string>();
  const extents: VmdkExtent[] = [];
  // The embedded form is padded with zero bytes up to whole sectors.
  for (const line of text.split('\0', 1).join('').split(/\r?\n/)) {
    const trimmed = line.trim();
    if (trimmed === '' || trimmed.startsWith('#')) continue;
    if (/^(RW|RDONLY|NOACCESS)\s/.test(trimmed)) {
      if (extents.length >= formatLimits.extentsMax) {
        throw new RouseError('corrupt-data', `${where}: more than ${extents.length} extents`);
      }
      extents.push(parseExtent(trimmed, where));
      continue;
    }
    const pair = /^([A-Za-z][\w.]*)\s*=\s*(.*)$/.exec(trimmed);
    if (pair === null) continue;
    const [, key = '', value = ''] = pair;
    (key.startsWith('ddb.') ? database : header).set(key, unquote(value));
  }
  return {
    contentId: (header.get('CID') ?? '').toLowerCase(),
    parentContentId: (header.get('parentCID') ?? noParent).toLowerCase(),
    createType: header.get('createType') ?? '',
    parentFileName: header.get('parentFileNameHint'),
    extents,
    database,
  };
}

/** `RW 4192256 SPARSE "disk-s001.vmdk" 0` */
const extentLine =
  /^(RW|RDONLY|NOACCESS)\s+(\d{1,16})\s+([A-Za-z0-9]+)(?:\s+"([^"]*)")?(?:\s+(\d{1,16}))?/;

function parseExtent(line: string, where: string): VmdkExtent {
  const match = extentLine.exec(line);
  const sectors = Number(match?.[2]);
  const offsetSectors = Number(match?.[5] ?? 0);
  if (match === null || !isSectorCount(sectors) || !isSectorCount(offsetSectors)) {
    throw new RouseError('corrupt-data', `${where}: cannot read the extent line ${cut(line)}`);
  }
  const access = match[1] === 'RW' ? 'RW' : match[1] === 'RDONLY' ? 'RDONLY' : 'NOACCESS';
  const type = (match[3] ?? '').toUpperCase();
  return { access, sectors, type, fileName: match[4], offsetSectors };
}

function isSectorCount(value: number): boolean {
  return value * sectorBytes <= formatLimits.sizeBytesMax;
}

function unquote(value: string): string {
  const trimmed = value.trim();
  return trimmed.length >= 2 && trimmed.startsWith('"') && trimmed.endsWith('"')
    ? trimmed.slice(1, -1)
    : trimmed;
}

function cut(text: string): string {
  return JSON.stringify(text.length > 120 ? `${text.slice(0, 120)}...` : text);
}

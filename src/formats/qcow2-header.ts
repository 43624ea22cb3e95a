import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';
import type { ImageFile } from './image-file.ts';

/** The header of a qcow2 image (QEMU, docs/interop/qcow2.txt), checked against its file. */
export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  readonly sizeBytes: number;
  readonly l1Entries: number;
  readonly l1Position: number;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  readonly compression: 'zlib' | 'zstd';
  /** L2 entries are 128 bits, and a cluster has 32 subclusters. */
  readonly extendedL2: boolean;
  /** Guest data lies in another file. */
  readonly hasDataFile: boolean;
  readonly dataFile: string | undefined;
}

/** `QFI\xfb` */
export const qcow2Magic = 0x514649fb;

const incompatible = {
  /** Bit 0: reference counts may be wrong; nothing that a reader looks at. */
  dirty: 1 << 0,
  corrupt: 1 << 1,
  dataFile: 1 << 2,
  compressionType: 1 << 3,
  extendedL2: 1 << 4,
} as const;

const knownFeatures = 0b11111;

const extension = {
  end: 0,
  backingFormat: 0xe2792aca,
  dataFile: 0x44415441,
} as const;

/** Lengths of the two versions' headers (version 3 says its own, 104 at least). */
const headerBytesV2 = 72;
const headerBytesV3 = 104;

export async function readQcow2Header(file: ImageFile): Promise<Qcow2Header> {
  const fixed = Buffer.alloc(112);
  await file.readPadded(fixed, 0);
  const version = fixed.readUInt32BE(4);
  if (fixed.readUInt32BE(0) !== qcow2Magic) throw broken(file, 'it does not begin as qcow2 does');
  if (version !== 2 && version !== 3) throw unsupported(file, `is qcow of version ${version}`);
  if (file.sizeBytes < (version === 2 ? headerBytesV2 : headerBytesV3)) {
    throw file.truncated(0, headerBytesV3);
  }
  const features = version === 3 ? readFeatures(file, fixed) : 0;
  const clusterBits = readClusterBits(file, fixed, features);
  const sizeBytes = readBig(fixed, 24);
  checkSize(file, sizeBytes);
  refuseEncryption(file, fixed.readUInt32BE(32));
  const headerBytes = version === 3 ? fixed.readUInt32BE(100) : headerBytesV2;
  const head = await readHead(file, headerBytes, clusterBits, version);
  const names = readExtensions(file, head, headerBytes);
  const hasDataFile = (features & incompatible.dataFile) !== 0;
  return {
    version,
    clusterBits,
    sizeBytes,
    ...readL1(file, fixed, clusterBits, sizeBytes, (features & incompatible.extendedL2) !== 0),
    backingFile: readBackingFile(file, fixed, head),
    backingFormat: names.backingFormat,
    compression: readCompression(file, fixed, features, headerBytes),
    extendedL2: (features & incompatible.extendedL2) !== 0,
    hasDataFile,
    dataFile: hasDataFile ? names.dataFile : undefined,
  };
}

function readFeatures(file: ImageFile, fixed: Buffer): number {
  const high = fixed.readUInt32BE(72);
  const low = fixed.readUInt32BE(76);
  if (high !== 0 || (low & ~knownFeatures) !== 0) {
    const bits = [...bitNumbers(low & ~knownFeatures), ...bitNumbers(high).map((bit) => bit + 32)];
    throw unsupported(file, `needs qcow2 features that are unknown here (bits ${bits.join(', ')})`);
  }
  if ((low & incompatible.corrupt) !== 0) {
    throw new RouseError('corrupt-data', `${file.path}: is marked as corrupt by QEMU`, {
      advice: 'Repair it with qemu-img check -r all, or use another copy.',
    });
  }
  return low;
}

function bitNumbers(mask: number): number[] {
  return Array.from({ length: 32 }, (_, bit) => bit).filter((bit) => ((mask >>> bit) & 1) === 1);
}

function readClusterBits(file: ImageFile, fixed: Buffer, features: number): number {
  const bits = fixed.readUInt32BE(20);
  // 512 bytes to 2 MiB; with subclusters of at least 512 bytes, 16 KiB at least.
  const least = (features & incompatible.extendedL2) !== 0 ? 14 : 9;
  if (bits < least || bits > 21) throw broken(file, `clusters of 2^${bits} bytes are not allowed`);
  return bits;
}

function checkSize(file: ImageFile, sizeBytes: number): void {
  if (sizeBytes === 0) {
    throw new RouseError('bad-request', `${file.path}: a qcow2 image of a disk of 0 bytes`, {
      advice: 'There is nothing to back up in it; check the name.',
    });
  }
  if (sizeBytes > formatLimits.sizeBytesMax) {
    throw broken(file, `a disk of ${sizeBytes} bytes is not believable`);
  }
}

function refuseEncryption(file: ImageFile, method: number): void {
  if (method === 0) return;
  const name = method === 1 ? 'AES' : method === 2 ? 'LUKS' : `method ${method}`;
  throw new RouseError('unsupported-format', `${file.path}: is encrypted (${name})`, {
    advice: 'Back it up through its running machine, or decrypt it with qemu-img convert first.',
  });
}

/** Header, extensions and the backing file's name: all in the first cluster. */
async function readHead(
  file: ImageFile,
  headerBytes: number,
  clusterBits: number,
  version: number,
): Promise<Buffer> {
  const clusterBytes = 2 ** clusterBits;
  if (version === 3 && (headerBytes < headerBytesV3 || headerBytes % 8 !== 0)) {
    throw broken(file, `a header of ${headerBytes} bytes is not allowed`);
  }
  if (headerBytes > clusterBytes) throw broken(file, 'its header is larger than a cluster');
  const head = Buffer.alloc(Math.min(clusterBytes, file.sizeBytes, formatLimits.headerBytesMax));
  await file.read(head, 0);
  return head;
}

interface ExtensionNames {
  backingFormat: string | undefined;
  dataFile: string | undefined;
}

function readExtensions(file: ImageFile, head: Buffer, from: number): ExtensionNames {
  const names: ExtensionNames = { backingFormat: undefined, dataFile: undefined };
  // Old images have no extensions and put the backing file's name right there.
  const backingAt = readBig(head, 8);
  const end = backingAt > from && backingAt < head.length ? backingAt : head.length;
  let at = from;
  while (at + 8 <= end) {
    const type = head.readUInt32BE(at);
    const length = head.readUInt32BE(at + 4);
    if (type === extension.end) break;
    if (length > end - at - 8) throw broken(file, `a header extension of ${length} bytes`);
    const content = head.subarray(at + 8, at + 8 + length);
    if (type === extension.backingFormat) names.backingFormat = content.toString('utf8');
    if (type === extension.dataFile) names.dataFile = content.toString('utf8');
    at += 8 + Math.ceil(length / 8) * 8;
  }
  return names;
}

function readBackingFile(file: ImageFile, fixed: Buffer, head: Buffer): string | undefined {
  const position = readBig(fixed, 8);
  const length = fixed.readUInt32BE(16);
  if (position === 0 || length === 0) return undefined;
  // QEMU's own bound is 1023 bytes.
  if (length > 1023 || position + length > head.length) {
    throw broken(file, `its backing file's name is said to be ${length} bytes at ${position}`);
  }
  return head.subarray(position, position + length).toString('utf8');
}

function readCompression(
  file: ImageFile,
  fixed: Buffer,
  features: number,
  headerBytes: number,
): 'zlib' | 'zstd' {
  if ((features & incompatible.compressionType) === 0 || headerBytes <= 104) return 'zlib';
  const type = fixed.readUInt8(104);
  if (type === 0) return 'zlib';
  if (type === 1) return 'zstd';
  throw unsupported(file, `is compressed by method ${type}, which is unknown here`);
}

function readL1(
  file: ImageFile,
  fixed: Buffer,
  clusterBits: number,
  sizeBytes: number,
  extendedL2: boolean,
): { l1Entries: number; l1Position: number } {
  const l1Entries = fixed.readUInt32BE(36);
  const l1Position = readBig(fixed, 40);
  const entriesPerL2 = 2 ** clusterBits / (extendedL2 ? 16 : 8);
  const needed = Math.ceil(sizeBytes / (2 ** clusterBits * entriesPerL2));
  if (l1Entries * 8 > formatLimits.l1BytesMax || l1Entries < needed) {
    throw broken(file, `an L1 table of ${l1Entries} entries; this disk needs ${needed}`);
  }
  if (l1Position % 2 ** clusterBits !== 0 || l1Position === 0) {
    throw broken(file, `an L1 table at ${l1Position}`);
  }
  if (l1Position + needed * 8 > file.sizeBytes) throw file.truncated(l1Position, needed * 8);
  return { l1Entries, l1Position };
}

/** 64 bits, big endian; beyond 2^53 all are alike: too large. */
export function readBig(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4);
}

export function broken(file: ImageFile, what: string): RouseError {
  return new RouseError('corrupt-data', `${file.path}: a broken qcow2 image: ${what}`, {
    advice: 'Try qemu-img check on it, or use another copy.',
  });
}

function unsupported(file: ImageFile, what: string): RouseError {
  return new RouseError('unsupported-format', `${file.path}: ${what}`, {
    advice: 'Convert it first: qemu-img convert -O qcow2 OLD NEW.',
  });
}

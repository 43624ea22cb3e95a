import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';
import type { ReadableDisk } from '../lib/disk.ts';
import type { ImageFile } from './image-file.ts';
import type { DiskMap, Piece, Segment, TableNeeded } from './mapped-disk.ts';
import type { TableCache } from './table-cache.ts';
import { unpackDeflate } from './unpack.ts';
import { sectorBytes } from './vmdk-descriptor.ts';

/**
 * One sparse extent (VMware, "Virtual Disk Format 5.0", "Hosted Sparse Extents" and
 * "Stream-Optimized Compressed Sparse Extents"): a grain directory of grain tables of grains.
 */
export interface SparseHeader {
  readonly capacitySectors: number;
  readonly grainBytes: number;
  readonly entriesPerTable: number;
  readonly descriptorPosition: number;
  readonly descriptorBytes: number;
  /** Of the grain directory; `atEnd`: only the footer knows. */
  readonly directoryPosition: number | typeof atEnd;
  /** Metadata before the first grain. */
  readonly overheadBytes: number;
  readonly compressed: boolean;
  readonly markers: boolean;
  /** Grain table entry 1 means a grain of zeros. */
  readonly zeroGrains: boolean;
}

/** `KDMV` */
export const sparseMagic = 0x564d444b;
export const sparseHeaderBytes = 512;
export const atEnd = 'at-end';

const flag = { newLines: 1, zeroGrains: 4, compressed: 0x10000, markers: 0x20000 } as const;

/** `where` names the file in errors. Throws for what the format forbids. */
export function parseSparseHeader(bytes: Buffer, where: string): SparseHeader {
  if (bytes.length < sparseHeaderBytes || bytes.readUInt32LE(0) !== sparseMagic) {
    throw brokenVmdk(where, 'it has no sparse header');
  }
  const version = bytes.readUInt32LE(4);
  if (version < 1 || version > 3) throw brokenVmdk(where, `a header of version ${version}`);
  const flags = bytes.readUInt32LE(8);
  if ((flags & flag.newLines) !== 0) checkNewLines(bytes, where);
  const compressed = (flags & flag.compressed) !== 0;
  // compressAlgorithm: 0 none, 1 deflate (RFC 1951 in RFC 1950's wrapping).
  if (compressed && bytes.readUInt16LE(77) !== 1) {
    throw new RouseError('unsupported-format', `${where}: compressed by an unknown method`);
  }
  const grainBytes = readSectors(bytes, 20) * sectorBytes;
  const capacitySectors = readSectors(bytes, 12);
  const entriesPerTable = bytes.readUInt32LE(44);
  checkGeometry(where, capacitySectors, grainBytes, entriesPerTable);
  const directory = readSectors(bytes, 56);
  return {
    capacitySectors,
    grainBytes,
    entriesPerTable,
    descriptorPosition: readSectors(bytes, 28) * sectorBytes,
    descriptorBytes: readSectors(bytes, 36) * sectorBytes,
    // GD_AT_END: 2^64 - 1.
    directoryPosition: directory >= 2 ** 63 ? atEnd : directory * sectorBytes,
    overheadBytes: readSectors(bytes, 64) * sectorBytes,
    compressed,
    markers: (flags & flag.markers) !== 0,
    zeroGrains: (flags & flag.zeroGrains) !== 0,
  };
}

/** A text-mode transfer once turned line ends around: these four bytes tell. */
function checkNewLines(bytes: Buffer, where: string): void {
  if (bytes.subarray(73, 77).toString('latin1') !== '\n \r\n') {
    throw brokenVmdk(where, 'its line ends were changed on the way (a transfer in text mode)');
  }
}

function checkGeometry(
  where: string,
  capacitySectors: number,
  grainBytes: number,
  entriesPerTable: number,
): void {
  const isPower = Number.isInteger(Math.log2(grainBytes));
  if (!isPower || grainBytes < 8 * sectorBytes || grainBytes > formatLimits.pieceBytesMax) {
    throw brokenVmdk(where, `grains of ${grainBytes} bytes`);
  }
  // 512 in all that VMware wrote.
  if (entriesPerTable < 1 || entriesPerTable > 65536) {
    throw brokenVmdk(where, `grain tables of ${entriesPerTable} entries`);
  }
  if (capacitySectors * sectorBytes > formatLimits.sizeBytesMax) {
    throw brokenVmdk(where, `a capacity of ${capacitySectors} sectors`);
  }
}

/** Reads a header and, where the directory is said to be at the end, the footer. */
export async function readSparseHeader(file: ImageFile): Promise<SparseHeader> {
  const head = Buffer.alloc(sparseHeaderBytes);
  if (file.sizeBytes < sparseHeaderBytes) throw file.truncated(0, sparseHeaderBytes);
  await file.read(head, 0);
  const header = parseSparseHeader(head, file.path);
  if (header.directoryPosition !== atEnd) return header;
  // Footer marker, footer, end-of-stream marker: one sector each, the last three.
  const footerAt = file.sizeBytes - 2 * sectorBytes;
  if (footerAt < sectorBytes) throw file.truncated(0, 4 * sectorBytes);
  await file.read(head, footerAt);
  if (head.readUInt32LE(0) !== sparseMagic) {
    throw new RouseError('corrupt-data', `${file.path}: cut off: its footer is missing`, {
      advice: 'Copy or download the image again, whole.',
    });
  }
  const footer = parseSparseHeader(head, file.path);
  if (footer.directoryPosition === atEnd) throw brokenVmdk(file.path, 'a footer without directory');
  return { ...footer, descriptorPosition: header.descriptorPosition, ...descriptorOf(header) };
}

function descriptorOf(header: SparseHeader): Pick<SparseHeader, 'descriptorBytes'> {
  return { descriptorBytes: header.descriptorBytes };
}

/** Text in the extent itself; undefined in the parts of a split disk. */
export async function readEmbeddedDescriptor(
  file: ImageFile,
  header: SparseHeader,
): Promise<string | undefined> {
  if (header.descriptorPosition === 0 || header.descriptorBytes === 0) return undefined;
  if (header.descriptorBytes > formatLimits.descriptorBytesMax) {
    throw brokenVmdk(file.path, `a descriptor of ${header.descriptorBytes} bytes`);
  }
  if (header.descriptorPosition + header.descriptorBytes > file.sizeBytes) {
    throw file.truncated(header.descriptorPosition, header.descriptorBytes);
  }
  const bytes = Buffer.alloc(header.descriptorBytes);
  await file.read(bytes, header.descriptorPosition);
  return bytes.toString('utf8').split('\0', 1)[0] ?? '';
}

export class SparseExtentMap implements DiskMap {
  readonly #file: ImageFile;
  readonly #header: SparseHeader;
  readonly #tables: TableCache;
  readonly #directoryPosition: number;
  readonly #parent: ReadableDisk | undefined;
  /** Where the extent begins on the disk: the parent is asked there. */
  readonly #diskOffset: number;

  constructor(spec: {
    readonly file: ImageFile;
    readonly header: SparseHeader;
    readonly tables: TableCache;
    readonly parent: ReadableDisk | undefined;
    readonly diskOffset: number;
  }) {
    this.#file = spec.file;
    this.#header = spec.header;
    this.#tables = spec.tables;
    this.#parent = spec.parent;
    this.#diskOffset = spec.diskOffset;
    if (spec.header.directoryPosition === atEnd) throw brokenVmdk(spec.file.path, 'no directory');
    this.#directoryPosition = spec.header.directoryPosition;
    const covered = spec.header.grainBytes * spec.header.entriesPerTable;
    const tables = Math.ceil((spec.header.capacitySectors * sectorBytes) / covered);
    if (this.#directoryPosition === 0) throw brokenVmdk(spec.file.path, 'no grain directory');
    if (this.#directoryPosition + tables * 4 > spec.file.sizeBytes) {
      throw spec.file.truncated(this.#directoryPosition, tables * 4);
    }
  }

  /** `offset` is within the extent. */
  lookup(offset: number, lengthMax: number): Segment | TableNeeded {
    const { grainBytes, entriesPerTable } = this.#header;
    const grain = Math.floor(offset / grainBytes);
    const tableIndex = Math.floor(grain / entriesPerTable);
    const table = this.#entry(this.#directoryPosition + tableIndex * 4);
    if (typeof table !== 'number') return table;
    if (table === 0) {
      const tableEnd = (tableIndex + 1) * entriesPerTable * grainBytes;
      return this.#below(offset, Math.min(lengthMax, tableEnd - offset));
    }
    const entry = this.#entry(table * sectorBytes + (grain % entriesPerTable) * 4);
    if (typeof entry !== 'number') return entry;
    const within = offset % grainBytes;
    const length = Math.min(lengthMax, grainBytes - within);
    if (entry === 0) return this.#below(offset, length);
    if (entry === 1 && this.#header.zeroGrains) return { kind: 'zero', length };
    const position = entry * sectorBytes;
    if (this.#header.compressed) return this.#packed(position, grain, within, length);
    if (position + within + length > this.#file.sizeBytes) {
      throw this.#file.truncated(position + within, length);
    }
    return { kind: 'file', length, file: this.#file, position: position + within };
  }

  #entry(at: number): number | TableNeeded {
    const page = this.#tables.peek(this.#file, at);
    if (page === undefined) return { kind: 'table', file: this.#file, position: at };
    const within = at - page.position;
    if (within + 4 > page.bytes.length) throw this.#file.truncated(at, 4);
    return page.bytes.readUInt32LE(within);
  }

  #below(offset: number, length: number): Segment {
    const parent = this.#parent;
    const at = this.#diskOffset + offset;
    if (parent === undefined || at >= parent.sizeBytes) return { kind: 'zero', length };
    const present = Math.min(length, parent.sizeBytes - at);
    return { kind: 'disk', length: present, disk: parent, offset: at };
  }

  #packed(position: number, grain: number, within: number, length: number): Segment {
    const piece: Piece = {
      key: this.#diskOffset + position,
      sizeBytes: this.#header.grainBytes,
      unpack: () => this.#unpack(position, grain),
    };
    return { kind: 'packed', length, piece, within };
  }

  async #unpack(position: number, grain: number): Promise<Uint8Array> {
    const { grainBytes, markers } = this.#header;
    // Marker: the grain's first sector (8 bytes), its packed length (4). Without: a length only.
    const markerBytes = markers ? 12 : 4;
    const marker = Buffer.alloc(markerBytes);
    await this.#file.read(marker, position);
    const packedBytes = marker.readUInt32LE(markerBytes - 4);
    if (markers && readSectors(marker, 0) * sectorBytes !== grain * grainBytes) {
      throw brokenVmdk(this.#file.path, `the grain at ${position} belongs elsewhere`);
    }
    if (packedBytes > packedBytesMax(grainBytes)) {
      throw brokenVmdk(this.#file.path, `a grain of ${packedBytes} packed bytes at ${position}`);
    }
    const at = position + markerBytes;
    if (at + packedBytes > this.#file.sizeBytes) throw this.#file.truncated(at, packedBytes);
    const packed = Buffer.allocUnsafe(packedBytes);
    await this.#file.read(packed, at);
    return unpackGrain(packed, this.#grainSize(grain), grainBytes, this.#file.path, position);
  }

  /** The last grain may be packed as short as the disk ends. */
  #grainSize(grain: number): number {
    const left = this.#header.capacitySectors * sectorBytes - grain * this.#header.grainBytes;
    return Math.min(this.#header.grainBytes, left);
  }
}

/** Deflate grows what it cannot shrink by five bytes in 16 KiB; twice the grain is generous. */
export function packedBytesMax(grainBytes: number): number {
  return 2 * grainBytes + 1024;
}

/** A grain, whole, whether its last one was packed whole or only as far as the disk goes. */
export async function unpackGrain(
  packed: Uint8Array,
  sizeBytes: number,
  grainBytes: number,
  where: string,
  position: number,
): Promise<Uint8Array> {
  const whole = await unpackDeflate(packed, 'zlib', grainBytes);
  if (whole !== undefined) return whole;
  const short = sizeBytes < grainBytes ? await unpackDeflate(packed, 'zlib', sizeBytes) : undefined;
  if (short === undefined) {
    throw brokenVmdk(where, `the compressed grain at ${position} cannot be unpacked`);
  }
  const padded = new Uint8Array(grainBytes);
  padded.set(short);
  return padded;
}

/** 64 bits, little endian; beyond 2^53 all are alike: too large. */
export function readSectors(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 2 ** 32;
}

export function brokenVmdk(where: string, what: string): RouseError {
  return new RouseError('corrupt-data', `${where}: a broken VMDK: ${what}`, {
    advice: 'Copy the image again, whole, or use another copy of it.',
  });
}

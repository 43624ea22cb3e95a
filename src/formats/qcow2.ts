import { RouseError } from '../errors.ts';
import type { ReadableDisk } from '../lib/disk.ts';
import type { ImageFile } from './image-file.ts';
import { MappedDisk, wholeSectors } from './mapped-disk.ts';
import type { DiskMap, Piece, Segment, TableNeeded } from './mapped-disk.ts';
import { broken } from './qcow2-header.ts';
import type { Qcow2Header } from './qcow2-header.ts';
import type { TableCache, TablePage } from './table-cache.ts';
import { unpackDeflate, unpackZstd } from './unpack.ts';

/**
 * Reads qcow2, versions 2 and 3 (QEMU, docs/interop/qcow2.txt): L1 and L2 tables, zero and
 * compressed clusters, subclusters, a backing disk, an external data file. Internal snapshots are
 * passed over: what is read is the current state. Reference counts are not looked at.
 */
export interface Qcow2Parts {
  readonly file: ImageFile;
  readonly header: Qcow2Header;
  readonly backing: ReadableDisk | undefined;
  readonly dataFile: ImageFile | undefined;
  readonly tables: TableCache;
}

export function openQcow2(parts: Qcow2Parts): MappedDisk {
  return new MappedDisk({
    name: parts.file.path,
    sizeBytes: wholeSectors(parts.header.sizeBytes),
    map: new Qcow2Map(parts),
    tables: parts.tables,
    close: async () => {
      await parts.file.close();
      await parts.dataFile?.close();
      await parts.backing?.close();
    },
  });
}

/** Bits 9 to 55 of an entry are an offset; in halves, as JavaScript's bits are 32. */
const offsetHigh = 0x00ffffff;
const offsetLow = 0xfffffe00;
/** Bit 62 and bit 63, in the upper half. */
const compressedFlag = 0x40000000;
const copiedFlag = 0x80000000;
/** Bit 0: the cluster reads as zeros (version 3, not with subclusters). */
const zeroFlag = 1;

const subclusters = 32;

class Qcow2Map implements DiskMap {
  readonly #file: ImageFile;
  readonly #header: Qcow2Header;
  readonly #data: ImageFile;
  readonly #backing: ReadableDisk | undefined;
  readonly #tables: TableCache;
  readonly #clusterBytes: number;
  readonly #entryBytes: number;
  readonly #entriesPerL2: number;

  constructor(parts: Qcow2Parts) {
    this.#file = parts.file;
    this.#header = parts.header;
    this.#data = parts.dataFile ?? parts.file;
    this.#backing = parts.backing;
    this.#tables = parts.tables;
    this.#clusterBytes = 2 ** parts.header.clusterBits;
    this.#entryBytes = parts.header.extendedL2 ? 16 : 8;
    this.#entriesPerL2 = this.#clusterBytes / this.#entryBytes;
  }

  lookup(offset: number, lengthMax: number): Segment | TableNeeded {
    if (offset >= this.#header.sizeBytes) return { kind: 'zero', length: lengthMax };
    const length = Math.min(lengthMax, this.#header.sizeBytes - offset);
    const cluster = Math.floor(offset / this.#clusterBytes);
    const l1Index = Math.floor(cluster / this.#entriesPerL2);
    const l1At = this.#header.l1Position + l1Index * 8;
    const l1 = this.#tables.peek(this.#file, l1At);
    if (l1 === undefined) return { kind: 'table', file: this.#file, position: l1At };
    const l2Position = this.#l2Position(l1, l1At);
    if (l2Position === 0) {
      const l2Covers = this.#entriesPerL2 * this.#clusterBytes;
      return this.#below(offset, Math.min(length, (l1Index + 1) * l2Covers - offset));
    }
    const entryAt = l2Position + (cluster % this.#entriesPerL2) * this.#entryBytes;
    const l2 = this.#tables.peek(this.#file, entryAt);
    if (l2 === undefined) return { kind: 'table', file: this.#file, position: entryAt };
    const within = offset % this.#clusterBytes;
    const inCluster = Math.min(length, this.#clusterBytes - within);
    return this.#header.extendedL2
      ? this.#extended(l2, entryAt, offset, inCluster)
      : this.#standard(l2, entryAt, offset, inCluster);
  }

  #l2Position(page: TablePage, at: number): number {
    const high = entryHalf(this.#file, page, at);
    const low = entryHalf(this.#file, page, at + 4);
    const position = (high & offsetHigh) * 2 ** 32 + ((low & offsetLow) >>> 0);
    if (position % this.#clusterBytes !== 0) throw broken(this.#file, `an L2 table at ${position}`);
    return position;
  }

  #standard(page: TablePage, at: number, offset: number, length: number): Segment {
    const high = entryHalf(this.#file, page, at);
    const low = entryHalf(this.#file, page, at + 4);
    if ((high & compressedFlag) !== 0) return this.#compressed(high, low, offset, length);
    if ((low & zeroFlag) !== 0) {
      if (this.#header.version === 2) throw broken(this.#file, 'a zero cluster in version 2');
      return { kind: 'zero', length };
    }
    const host = this.#hostOffset(high, low);
    return host === undefined
      ? this.#below(offset, length)
      : this.#stored(host + (offset % this.#clusterBytes), length);
  }

  /** "Extended L2 Entries": 32 bits tell which subclusters are stored, 32 which are zeros. */
  #extended(page: TablePage, at: number, offset: number, lengthMax: number): Segment {
    const high = entryHalf(this.#file, page, at);
    const low = entryHalf(this.#file, page, at + 4);
    if ((high & compressedFlag) !== 0) return this.#compressed(high, low, offset, lengthMax);
    const zeros = entryHalf(this.#file, page, at + 8);
    const stored = entryHalf(this.#file, page, at + 12);
    if ((zeros & stored) !== 0) throw broken(this.#file, 'a subcluster both stored and zero');
    const within = offset % this.#clusterBytes;
    const subclusterBytes = this.#clusterBytes / subclusters;
    const first = Math.floor(within / subclusterBytes);
    const kind = (bit: number) => ((stored >>> bit) & 1) + ((zeros >>> bit) & 1) * 2;
    let last = first;
    while (last + 1 < subclusters && kind(last + 1) === kind(first)) last++;
    const length = Math.min(lengthMax, (last + 1) * subclusterBytes - within);
    if (kind(first) === 2) return { kind: 'zero', length };
    if (kind(first) === 0) return this.#below(offset, length);
    const host = this.#hostOffset(high, low);
    if (host === undefined) throw broken(this.#file, 'a stored subcluster without a place');
    return this.#stored(host + within, length);
  }

  #hostOffset(high: number, low: number): number | undefined {
    const host = (high & offsetHigh) * 2 ** 32 + ((low & offsetLow) >>> 0);
    // In a data file, offset 0 is a place like any other; the copied flag tells.
    const isFirst = this.#header.hasDataFile && (high & copiedFlag) !== 0;
    if (host === 0 && !isFirst) return undefined;
    if (host % this.#clusterBytes !== 0) throw broken(this.#file, `a cluster at ${host}`);
    return host;
  }

  #stored(position: number, length: number): Segment {
    if (position + length <= this.#data.sizeBytes) {
      return { kind: 'file', length, file: this.#data, position };
    }
    // A raw data file need not reach to the disk's end; a qcow2 file has all it refers to.
    if (!this.#header.hasDataFile) throw this.#data.truncated(position, length);
    const present = this.#data.sizeBytes - position;
    if (present <= 0) return { kind: 'zero', length };
    return { kind: 'file', length: present, file: this.#data, position };
  }

  /** What the backing disk has there; zeros beyond its end, or without one. */
  #below(offset: number, length: number): Segment {
    const backing = this.#backing;
    if (backing === undefined || offset >= backing.sizeBytes) return { kind: 'zero', length };
    const present = Math.min(length, backing.sizeBytes - offset);
    return { kind: 'disk', length: present, disk: backing, offset };
  }

  /** "Compressed Clusters Descriptor": x = 62 - (cluster_bits - 8) bits of offset, then sectors. */
  #compressed(high: number, low: number, offset: number, length: number): Segment {
    if (this.#header.hasDataFile) throw broken(this.#file, 'compressed clusters and a data file');
    const sectorBits = this.#header.clusterBits - 8;
    const offsetBitsHigh = 30 - sectorBits;
    const descriptor = high & 0x3fffffff;
    const position = (descriptor & (2 ** offsetBitsHigh - 1)) * 2 ** 32 + low;
    const sectors = (descriptor >>> offsetBitsHigh) + 1;
    const packedBytes = sectors * 512 - (position % 512);
    const within = offset % this.#clusterBytes;
    const piece: Piece = {
      key: position,
      sizeBytes: this.#clusterBytes,
      unpack: () => this.#unpack(position, packedBytes),
    };
    return { kind: 'packed', length, piece, within };
  }

  async #unpack(position: number, packedBytes: number): Promise<Uint8Array> {
    // The length is in sectors: the file may end within the last one.
    const present = Math.min(packedBytes, this.#file.sizeBytes - position);
    if (present <= 0) throw this.#file.truncated(position, packedBytes);
    const packed = Buffer.allocUnsafe(present);
    await this.#file.read(packed, position);
    const bytes =
      this.#header.compression === 'zstd'
        ? await unpackZstd(packed, this.#clusterBytes)
        : await unpackDeflate(packed, 'raw', this.#clusterBytes);
    if (bytes !== undefined) return bytes;
    throw present < packedBytes
      ? this.#file.truncated(position, packedBytes)
      : new RouseError(
          'corrupt-data',
          `${this.#file.path}: the compressed cluster at ${position} cannot be unpacked`,
          { advice: 'Try qemu-img check on it, or use another copy.' },
        );
  }
}

/** Half an entry from a table's page; the page is short when the file ends within it. */
function entryHalf(file: ImageFile, page: TablePage, at: number): number {
  const within = at - page.position;
  if (within + 4 > page.bytes.length) throw file.truncated(at, 4);
  return page.bytes.readUInt32BE(within);
}

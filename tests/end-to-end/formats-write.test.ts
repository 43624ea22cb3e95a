import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import * as fs from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { isRouseError } from '#src/errors.ts';
import { openDisk } from '#src/formats/open-disk.ts';
import { createQcow2Writer } from '#src/formats/qcow2-output.ts';
import { createRawWriter } from '#src/formats/raw-output.ts';
import { flatDescriptor } from '#src/formats/vmdk-descriptor.ts';
import { parseStreamOptimized } from '#src/formats/vmdk-stream.ts';

/** What we write, QEMU checks and reads; what QEMU streams, we read as it flows. */
const run = promisify(execFile);
const qemuImg = (...args: string[]) => run('qemu-img', args, { timeout: 60_000 });
const MiB = 1024 * 1024;

let folder: string;
before(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), 'formats-write-'));
});
after(() => fs.rm(folder, { recursive: true, force: true }));

function noise(bytes: Buffer, start: number, end: number): void {
  for (let at = start; at < end; at += 32) {
    createHash('sha256').update(`${at}`).digest().copy(bytes, at);
  }
}

const writers = { raw: createRawWriter, qcow2: createQcow2Writer } as const;

for (const format of ['raw', 'qcow2'] as const) {
  test(`${format}: what is written in any order and size is what QEMU reads`, async () => {
    const sizeBytes = 600 * MiB + 3 * 512;
    const image = path.join(folder, `out.${format}`);
    const expected = Buffer.alloc(sizeBytes);
    const output = await writers[format](image, sizeBytes);
    const put = async (offset: number, length: number) => {
      noise(expected, offset, offset + length);
      await output.write(expected.subarray(offset, offset + length), offset);
    };
    await Promise.all([put(540 * MiB + 512, 3 * MiB), put(0, 100_000), put(200_704, MiB)]);
    await put(sizeBytes - 512, 512);
    // Zeros over data, zeros over nothing, zeros within what is written.
    expected.fill(0, 541 * MiB, 542 * MiB + 1);
    await output.zero(541 * MiB, MiB + 1);
    await output.zero(100 * MiB, 200 * MiB);
    await output.write(expected.subarray(539 * MiB, 545 * MiB), 539 * MiB);
    await output.finish();

    if (format === 'qcow2') await qemuImg('check', '-f', 'qcow2', image);
    const raw = path.join(folder, `back-${format}.raw`);
    await qemuImg('convert', '-f', format, '-O', 'raw', image, raw);
    assert.ok((await fs.readFile(raw)).equals(expected));
    const { blocks } = await fs.stat(image);
    assert.ok(blocks * 512 < 8 * MiB, `it takes ${blocks * 512} bytes`);
    await fs.rm(raw);

    const disk = await openDisk(image, { format });
    const part = Buffer.alloc(2 * MiB);
    await disk.read(part, 540 * MiB);
    await disk.close();
    assert.ok(part.equals(expected.subarray(540 * MiB, 542 * MiB)));
  });

  test(`${format}: an output given up leaves nothing, one that exists is not overwritten`, async () => {
    const image = path.join(folder, `given-up.${format}`);
    const output = await writers[format](image, MiB);
    await assert.rejects(writers[format](image, MiB), (error) =>
      isRouseError(error, 'already-exists'),
    );
    await output.write(Buffer.alloc(4096, 1), 0);
    await output.abandon();
    await assert.rejects(fs.stat(image));
    await assert.rejects(writers[format](image, 1000), (error) =>
      isRouseError(error, 'bad-request'),
    );
    await fs.writeFile(image, 'made beforehand');
    const replaced = await writers[format](image, MiB, { replace: true });
    await replaced.finish();
    const disk = await openDisk(image, { format });
    assert.deepEqual(await disk.extents(0, MiB), [{ offset: 0, length: MiB, zero: true }]);
    await disk.close();
  });
}

test('qcow2: a half-written file is not taken for an image', async () => {
  const image = path.join(folder, 'half.qcow2');
  const output = await createQcow2Writer(image, 10 * MiB);
  await output.write(Buffer.alloc(MiB, 7), 0);
  await assert.rejects(openDisk(image, { format: 'qcow2' }), (error) =>
    isRouseError(error, 'corrupt-data'),
  );
  await output.abandon();
});

test('a full file system is an error that names it', async () => {
  const mount = path.join(folder, 'small');
  await fs.mkdir(mount);
  // A tmpfs of 1 MiB, seen by this child only.
  const script = `
    import { createRawWriter } from ${JSON.stringify(path.resolve('src/formats/raw-output.ts'))};
    const output = await createRawWriter(${JSON.stringify(path.join(mount, 'x.raw'))}, 8388608);
    try { await output.write(Buffer.alloc(8388608, 1), 0); }
    catch (error) { console.log(error.code, error.message); }
    await output.abandon();`;
  const shell = `mount -t tmpfs -o size=1m none ${mount} && exec ${process.execPath} --input-type=module-typescript -e "$0"`;
  const { stdout } = await run('unshare', ['-m', 'sh', '-c', shell, script], { timeout: 30_000 });
  assert.match(stdout, /^disk-full .*x\.raw/);
});

test('our flat descriptor is a disk to QEMU and to us', async () => {
  const flat = Buffer.alloc(3 * MiB + 512);
  noise(flat, MiB, 2 * MiB);
  await fs.writeFile(path.join(folder, 'vda-flat.vmdk'), flat);
  const image = path.join(folder, 'vda.vmdk');
  const text = flatDescriptor({
    sizeBytes: flat.length,
    flatFileName: 'vda-flat.vmdk',
    adapter: 'lsilogic',
    uuid: '0f9c8d7e-0011-2233-4455-66778899aabb',
    cid: 0xfeedf00d,
  });
  await fs.writeFile(image, text);
  const { stdout } = await qemuImg('info', '--output=json', image);
  const info: unknown = JSON.parse(stdout);
  assert.ok(typeof info === 'object' && info !== null && 'format' in info);
  assert.equal(info.format, 'vmdk');
  const raw = path.join(folder, 'vda.raw');
  await qemuImg('convert', '-f', 'vmdk', '-O', 'raw', image, raw);
  assert.ok((await fs.readFile(raw)).equals(flat));
  const disk = await openDisk(image);
  const bytes = Buffer.alloc(flat.length);
  await disk.read(bytes, 0);
  await disk.close();
  assert.ok(bytes.equals(flat));
});

test('a streamOptimized VMDK is read as it flows, in chunks of any size', async () => {
  const content = Buffer.alloc(20 * MiB + 512);
  noise(content, MiB, 3 * MiB);
  content.fill('text ', 9 * MiB + 5000, 11 * MiB);
  const source = path.join(folder, 'stream.raw');
  const image = path.join(folder, 'stream.vmdk');
  await fs.writeFile(source, content);
  await qemuImg('convert', '-O', 'vmdk', '-o', 'subformat=streamOptimized', source, image);
  for (const highWaterMark of [7_001, MiB]) {
    const stream = await parseStreamOptimized(createReadStream(image, { highWaterMark }), image);
    assert.equal(stream.sizeBytes, content.length);
    assert.equal(stream.descriptor?.createType, 'streamOptimized');
    const bytes = Buffer.alloc(content.length, 0xee);
    for await (const piece of stream.pieces) {
      if (piece.zero) bytes.fill(0, piece.offset, piece.offset + piece.length);
      else bytes.set(piece.data, piece.offset);
    }
    assert.ok(bytes.equals(content));
  }
  const { size } = await fs.stat(image);
  // QEMU pads the end with 64 KiB of nothing.
  for (const end of [size - 66_000, size - 200_000, Math.floor(size / 2), 100]) {
    await assert.rejects(
      async () => {
        const stream = await parseStreamOptimized(createReadStream(image, { end: end - 1 }), image);
        for await (const piece of stream.pieces) assert.ok(piece.length > 0);
      },
      (error) => isRouseError(error, 'corrupt-data'),
      `cut at ${end} of ${size}`,
    );
  }
});

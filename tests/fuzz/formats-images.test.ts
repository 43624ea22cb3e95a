import assert from 'node:assert/strict';
import * as fs from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import { after, before, test } from 'node:test';
import { RouseError } from '#src/errors.ts';
import { openDisk } from '#src/formats/open-disk.ts';
import { describeDomain } from '#src/formats/libvirt-xml.ts';
import { qcow2Sample, vmdkDescriptorSample, vmdkSample } from '#src/formats/samples.ts';
import { parseDescriptor } from '#src/formats/vmdk-descriptor.ts';
import { parseStreamOptimized } from '#src/formats/vmdk-stream.ts';
import { describeVmx, parseVmx } from '#src/formats/vmx.ts';

/**
 * Valid images with bytes changed, cut, doubled, by seed. Whatever comes out of it: data of the
 * disk's size or one RouseError (never `internal`), within bounded memory, and an end to it.
 * FORMATS_SEED and FORMATS_ROUNDS repeat or widen a run.
 */
const seed = Number(process.env['FORMATS_SEED'] ?? 20261122);
const rounds = Number(process.env['FORMATS_ROUNDS'] ?? 300);

/** mulberry32: small, and the same everywhere. */
function randomOf(start: number): (below: number) => number {
  let state = start >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), state | 1);
    value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
    return ((value ^ (value >>> 14)) >>> 0) % below;
  };
}

const interesting = [0, 1, 0x7f, 0x80, 0xff];

function mutate(original: Buffer, random: (below: number) => number): Buffer {
  let bytes: Buffer = Buffer.from(original);
  const changes = 1 + random(6);
  for (let i = 0; i < changes; i++) {
    // Headers and tables are where it matters.
    const at = random(3) === 0 ? random(bytes.length) : random(Math.min(bytes.length, 600));
    switch (random(6)) {
      case 0:
        bytes[at] = random(256);
        break;
      case 1:
        bytes[at] = interesting[random(interesting.length)] ?? 0;
        break;
      case 2:
        bytes.fill(random(2) * 255, at, Math.min(bytes.length, at + 1 + random(16)));
        break;
      case 3:
        bytes = bytes.subarray(0, Math.max(1, random(2) === 0 ? at : bytes.length - random(2000)));
        break;
      case 4:
        bytes.copyWithin(at, random(bytes.length), random(bytes.length) + 1);
        break;
      default:
        bytes[at] = (bytes[at] ?? 0) ^ (1 << random(8));
    }
  }
  return bytes;
}

let folder: string;
before(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), 'formats-fuzz-'));
});
after(() => fs.rm(folder, { recursive: true, force: true }));

/** At most so much of the disk is read: a changed size may say petabytes. */
const readMax = 2 * 1024 * 1024;

async function readSome(file: string): Promise<void> {
  const disk = await openDisk(file);
  try {
    assert.ok(disk.sizeBytes > 0 && disk.sizeBytes % 512 === 0);
    for (const start of [0, Math.max(0, disk.sizeBytes - readMax)]) {
      const length = Math.min(readMax, disk.sizeBytes - start);
      let next = start;
      for (const extent of await disk.extents(start, length)) {
        assert.equal(extent.offset, next);
        assert.ok(extent.length > 0);
        next += extent.length;
      }
      assert.equal(next, start + length);
      await disk.read(Buffer.alloc(length), start);
    }
  } finally {
    await disk.close();
  }
}

async function errorOf(work: () => Promise<void> | void): Promise<unknown> {
  try {
    await work();
    return undefined;
  } catch (error) {
    return error;
  }
}

function assertTyped(error: unknown, what: string): void {
  if (error === undefined) return;
  assert.ok(error instanceof RouseError, `${what}: ${String(error)}`);
  assert.notEqual(error.code, 'internal', `${what}: ${error.message}`);
  assert.ok(error.message.length < 2000);
}

const noise = Buffer.from(Array.from({ length: 65536 }, (_, i) => (i * 131 + (i >> 8) * 17) & 255));
const text = Buffer.alloc(65536, 'fuzz me ');
const descriptor = vmdkDescriptorSample(['createType="x"', 'RW 1000 SPARSE "x.vmdk"']);

const samples: Readonly<Record<string, Buffer>> = {
  'qcow2 v3': qcow2Sample({
    sizeBytes: 40 * 4096,
    clusters: {
      0: { kind: 'stored', bytes: noise.subarray(0, 4096) },
      1: { kind: 'zero' },
      9: { kind: 'packed', bytes: text.subarray(0, 4096) },
    },
  }),
  'qcow2 v2, small clusters': qcow2Sample({
    version: 2,
    clusterBits: 9,
    sizeBytes: 60 * 512,
    clusters: { 3: { kind: 'packed', bytes: text.subarray(0, 512) } },
  }),
  'qcow2 zstd': qcow2Sample({
    sizeBytes: 4096 * 20,
    zstd: true,
    clusters: { 2: { kind: 'packed', bytes: text.subarray(0, 4096) } },
  }),
  'qcow2 over a raw file': qcow2Sample({
    sizeBytes: 40 * 4096,
    backingFile: 'base.raw',
    backingFormat: 'raw',
    clusters: { 5: { kind: 'zero' } },
  }),
  'vmdk sparse': vmdkSample({
    make: 'sparse',
    capacitySectors: 1000,
    grains: { 1: noise, 2: null, 7: text },
    descriptor,
  }),
  'vmdk streamOptimized': vmdkSample({
    make: 'stream',
    capacitySectors: 1000,
    grains: { 1: noise, 7: text },
    descriptor,
  }),
  'vmdk descriptor': Buffer.from(
    vmdkDescriptorSample(['RW 20 FLAT "base.raw" 3', 'RW 9 ZERO', 'RW 5 FLAT "base.raw" 0']),
  ),
};

for (const [name, image] of Object.entries(samples)) {
  test(`${name}: changed images give data or one typed error`, async () => {
    await fs.writeFile(path.join(folder, 'base.raw'), noise);
    const file = path.join(folder, 'fuzzed.img');
    let refused = 0;
    let heapMax = 0;
    for (let round = 0; round < rounds; round++) {
      const bytes = mutate(image, randomOf(seed + round));
      await fs.writeFile(file, bytes);
      const error = await errorOf(() => readSome(file));
      assertTyped(error, `seed ${seed + round}`);
      if (error !== undefined) refused++;
      heapMax = Math.max(heapMax, process.memoryUsage().rss);
    }
    assert.ok(refused > 0, 'not one change mattered');
    assert.ok(refused < rounds, 'not one change was harmless');
    assert.ok(heapMax < 600 * 1024 * 1024, `${heapMax} bytes of memory`);
  });
}

test('a changed stream gives pieces within the disk or one typed error', async () => {
  const image = samples['vmdk streamOptimized'] ?? Buffer.alloc(0);
  for (let round = 0; round < rounds; round++) {
    const random = randomOf(seed + round);
    const bytes = mutate(image, random);
    const chunks = async function* () {
      for (let at = 0; at < bytes.length;) {
        const length = 1 + random(9000);
        yield bytes.subarray(at, at + length);
        at += length;
      }
    };
    const error = await errorOf(async () => {
      const stream = await parseStreamOptimized(chunks(), 'fuzzed');
      for await (const piece of stream.pieces) {
        assert.ok(piece.length > 0 && piece.offset + piece.length <= stream.sizeBytes);
      }
    });
    assertTyped(error, `seed ${seed + round}`);
  }
});

test('changed texts give a description or one typed error', async () => {
  const xml = `<domain type='qemu'><name>x</name><devices><disk type='file' device='disk'>
    <source file='/a'/><target dev='vda'/></disk></devices></domain>`;
  const vmx = 'displayName = "x"\nscsi0:0.fileName = "x.vmdk"\nnvram = "x.nvram"\n';
  for (let round = 0; round < rounds; round++) {
    const random = randomOf(seed + round);
    const changed = (original: string) => mutate(Buffer.from(original), random).toString('utf8');
    const texts = [changed(xml), changed(vmx), changed(descriptor)] as const;
    assertTyped(await errorOf(() => void describeDomain(texts[0], 'x')), `seed ${seed + round}`);
    const vmxError = await errorOf(() => void describeVmx(parseVmx(texts[1], 'x'), 'x'));
    assertTyped(vmxError, `seed ${seed + round}`);
    assertTyped(await errorOf(() => void parseDescriptor(texts[2], 'x')), `seed ${seed + round}`);
  }
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError } from '../errors.ts';
import { vmdkSample } from '../formats/samples.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { header, readWhole, vaultWorld } from '../testing/vault-world.ts';
import { ingestStreams, type StreamedDisk } from './stream-ingest.ts';

const grainBytes = 64 * 1024;
const quiet = { signal: new AbortController().signal, update: () => undefined };

/** Some grains of noise on a disk, and what the disk then holds. */
function sample(random: SeededRandom, sizeBytes: number) {
  const content = Buffer.alloc(sizeBytes);
  const grains: Record<number, Buffer> = {};
  for (let grain = 0; grain * grainBytes < sizeBytes; grain += 1) {
    if (random.chance(0.5)) continue;
    const bytes = random.bytes(grainBytes);
    grains[grain] = bytes;
    bytes.copy(content, grain * grainBytes);
  }
  const vmdk = vmdkSample({ capacitySectors: sizeBytes / 512, grains, make: 'stream' });
  return { content, vmdk };
}

/** In chunks of any size, as a network brings them. */
async function* chunks(bytes: Buffer, random: SeededRandom): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length;) {
    const length = 1 + random.below(100_000);
    yield bytes.subarray(at, at + length);
    at += length;
  }
}

function diskOf(name: string, vmdk: Buffer, sizeBytes: number, random: SeededRandom): StreamedDisk {
  return { name, source: 'test', sizeBytes, download: () => chunks(vmdk, random) };
}

async function takeIn(disks: readonly StreamedDisk[], blockBytes: number) {
  const world = await vaultWorld({ blockBytes });
  const vault = await world.open();
  const writer = await vault.begin('main');
  const seen: number[] = [];
  const update = ({ doneBytes = 0 }: { doneBytes?: number }) => void seen.push(doneBytes);
  try {
    await ingestStreams(writer, disks, blockBytes, { signal: quiet.signal, update });
    const saveset = await writer.seal(header);
    const contents: Buffer[] = [];
    for (const { root } of saveset.disks) contents.push(await readWhole(vault, root));
    return { saveset, contents, seen };
  } catch (error) {
    await writer.abandon();
    throw error;
  } finally {
    await vault.close();
  }
}

test('by seed: several disks at once come out as they are, whatever the size of blocks', async () => {
  for (let seed = 1; seed <= 12; seed += 1) {
    const random = new SeededRandom(seed);
    const blockBytes = [4096, 32 * 1024, 128 * 1024, 1024 * 1024][seed % 4] ?? 4096;
    const sizes = [1, 2, 3, 4].map(() => 512 * (1 + random.below(6_000)));
    const made = sizes.map((sizeBytes) => sample(random, sizeBytes));
    const disks = made.map(({ vmdk, content }, index) =>
      diskOf(`scsi0:${index}`, vmdk, content.length, random),
    );
    const { saveset, contents, seen } = await takeIn(disks, blockBytes);
    assert.deepEqual(
      saveset.disks.map(({ name }) => name),
      disks.map(({ name }) => name),
    );
    for (const [index, { content }] of made.entries()) {
      assert.ok(contents[index]?.equals(content), `seed ${seed}, disk ${index}`);
    }
    const total = sizes.reduce((sum, size) => sum + size, 0);
    assert.equal(Math.max(...seen), total, 'all of it was told of');
  }
});

test('what a stream passes over is neither read nor stored', async () => {
  const random = new SeededRandom(5);
  const sizeBytes = 256 * grainBytes;
  const bytes = random.bytes(grainBytes);
  const grains = { 3: bytes, 200: bytes };
  const vmdk = vmdkSample({ capacitySectors: sizeBytes / 512, grains, make: 'stream' });
  const { saveset } = await takeIn([diskOf('a', vmdk, sizeBytes, random)], 32 * 1024);
  assert.equal(saveset.cost.readBytes, 2 * grainBytes);
  assert.equal(saveset.disks[0]?.referencedBytes, 2 * grainBytes);
});

test('grains that come out of order are taken when they are whole blocks, and refused else', async () => {
  const random = new SeededRandom(6);
  const sizeBytes = 64 * grainBytes;
  const [first, last] = [random.bytes(grainBytes), random.bytes(grainBytes)];
  const grains = { 1: first, 60: last };
  const vmdk = vmdkSample({ capacitySectors: sizeBytes / 512, grains, make: 'stream' });
  // The two markers change places: each grain goes where the other was to.
  const firstAt = 64 * 512;
  const lastAt = firstAt + Math.ceil((12 + vmdk.readUInt32LE(firstAt + 8)) / 512) * 512;
  vmdk.writeBigUInt64LE(60n * 128n, firstAt);
  vmdk.writeBigUInt64LE(1n * 128n, lastAt);
  const { contents } = await takeIn([diskOf('a', vmdk, sizeBytes, random)], 32 * 1024);
  assert.ok(contents[0]?.subarray(60 * grainBytes, 61 * grainBytes).equals(first));
  assert.ok(contents[0]?.subarray(grainBytes, 2 * grainBytes).equals(last));
  await assert.rejects(
    takeIn([diskOf('a', vmdk, sizeBytes, random)], 128 * 1024),
    /download of disk a is broken: a piece at 65536 comes out of order/,
  );
});

test('a stream that is cut, of another size, or spoiled is a broken download, to be tried again', async () => {
  const random = new SeededRandom(7);
  const sizeBytes = 16 * grainBytes;
  const bytes = random.bytes(grainBytes);
  const vmdk = vmdkSample({
    capacitySectors: sizeBytes / 512,
    grains: { 2: bytes },
    make: 'stream',
  });
  const spoiled = Buffer.from(vmdk);
  spoiled[64 * 512 + 1000] = (spoiled[64 * 512 + 1000] ?? 0) ^ 1;
  const broken = [
    diskOf('a', vmdk.subarray(0, vmdk.length - 512), sizeBytes, random),
    diskOf('a', vmdk.subarray(0, 40_000), sizeBytes, random),
    diskOf('a', vmdk, sizeBytes + 512, random),
    diskOf('a', spoiled, sizeBytes, random),
    diskOf('a', Buffer.from('<html>not a disk</html>'.padEnd(600)), sizeBytes, random),
  ];
  for (const disk of broken) {
    await assert.rejects(takeIn([disk], 32 * 1024), (error: unknown) => {
      assert.ok(isRouseError(error, 'hypervisor-error'), String(error));
      assert.match(error.message, /the download of disk a is broken/);
      return true;
    });
  }
});

test('the first failure ends the other downloads, and is the one that is told', async () => {
  const random = new SeededRandom(8);
  const sizeBytes = 16 * grainBytes;
  let isEnded = false;
  const endless: StreamedDisk = {
    ...{ name: 'slow', source: 'test', sizeBytes },
    async *download(signal) {
      await new Promise<void>((_resolve, reject) => {
        signal.addEventListener('abort', () => {
          isEnded = true;
          reject(new Error('aborted'));
        });
      });
      yield Buffer.alloc(0);
    },
  };
  const bad = diskOf('bad', Buffer.alloc(1024), sizeBytes, random);
  await assert.rejects(takeIn([endless, bad], 32 * 1024), /disk bad is broken/);
  assert.ok(isEnded);
});

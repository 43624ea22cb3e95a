import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isRouseError } from '../errors.ts';
import { ForgetfulFiles } from '../testing/forgetful-files.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import type { NodeRecord } from './file-nodes.ts';
import { FileTable } from './file-table.ts';

/** What the journal of names survives, and what it says of bytes that rotted. */

const directory = '/names';
const path = `${directory}/table`;
const time = { seconds: 1, nanoseconds: 2 };

function record(id: number, kind: NodeRecord['kind']): NodeRecord {
  const times = { accessed: time, modified: time, changed: time };
  return { id, kind, mode: 0o644, links: 1, uid: 0, gid: 0, ...times };
}

function shownOf(table: FileTable): string {
  const nodes = [...table.nodes()].map(({ record: known, entries }) => [
    known,
    [...entries.values()].toSorted((a, b) => a.cookie - b.cookie),
  ]);
  return JSON.stringify(nodes);
}

/** Some names more or fewer, and a sync now and then; at the end everything is durable. */
async function live(table: FileTable, random: SeededRandom): Promise<void> {
  for (let turn = 4 + random.below(12); turn > 0; turn--) {
    const id = table.nextId++;
    const names = [...(table.node(1)?.entries.values() ?? [])];
    if (names.length > 0 && random.chance(0.3)) {
      const { name, id: gone } = random.pick(names);
      table.change([{ unlink: { directory: 1, name } }, { drop: gone }]);
    } else {
      const link = { directory: 1, name: `file-${id}`, id, cookie: 2 + id };
      table.change([{ put: record(id, 'file') }, { link }]);
    }
    if (random.chance(0.4)) await table.durable();
  }
  await table.durable();
}

async function bytesOf(files: ForgetfulFiles): Promise<Buffer> {
  const file = await files.open(path, 'read');
  const bytes = Buffer.alloc(await file.size());
  await file.read(bytes, 0);
  await file.close();
  return bytes;
}

async function replace(files: ForgetfulFiles, bytes: Buffer): Promise<void> {
  const file = await files.open(path, 'write');
  await file.truncate(bytes.length);
  await file.write([bytes], 0);
  await file.sync();
  await file.close();
}

async function lived(seed: number) {
  const random = new SeededRandom(seed);
  const files = new ForgetfulFiles(seed);
  const table = await FileTable.create(files, directory, record(1, 'directory'));
  await live(table, random);
  const shown = shownOf(table);
  await table.close();
  return { random, files, shown, bytes: await bytesOf(files) };
}

test('one flipped bit anywhere is told, or nothing is lost by it', async () => {
  let told = 0;
  for (let seed = 1; seed <= 250; seed++) {
    const { random, files, shown, bytes } = await lived(seed);
    const at = random.below(bytes.length);
    bytes[at] = (bytes[at] ?? 0) ^ (1 << random.below(8));
    await replace(files, bytes);
    try {
      const table = await FileTable.open(files, directory);
      assert.equal(shownOf(table), shown, `seed ${seed}: bit of byte ${at}`);
      await table.close();
    } catch (error) {
      if (!isRouseError(error, 'corrupt-data')) throw error;
      assert.match(error.message, /^\/names\/table: damaged at byte \d+$/);
      assert.ok((await bytesOf(files)).equals(bytes), `seed ${seed}: the damaged file was changed`);
      told++;
    }
  }
  assert.ok(told > 200, `${told} were told`);
});

test('lines that no sync covered may be torn in any order, and are dropped', async () => {
  for (let seed = 1; seed <= 150; seed++) {
    const random = new SeededRandom(seed);
    const files = new ForgetfulFiles(seed);
    await files.syncDirectory('/');
    const table = await FileTable.create(files, directory, record(1, 'directory'));
    await files.syncDirectory('/');
    await live(table, random);
    const kept = new Set([...(table.node(1)?.entries.keys() ?? [])]);
    for (let more = random.below(40); more > 0; more--) {
      const id = table.nextId++;
      const link = { directory: 1, name: `late-${id}`, id, cookie: 2 + id };
      table.change([{ put: record(id, 'file') }, { link }]);
    }
    const found = files.crash();
    const opened = await FileTable.open(found, directory);
    for (const name of kept) {
      assert.ok(opened.node(1)?.entries.has(name), `seed ${seed}: ${name} was durable`);
    }
    await opened.close();
  }
});

test('a bad line at the end, that no mark covers, takes nothing with it', async () => {
  const { files, shown, bytes } = await lived(3);
  const text = bytes.toString();
  const tail = text.slice(0, text.lastIndexOf('\n', text.length - 2) + 1);
  await replace(files, Buffer.from(`${tail}not a line\n`));
  const table = await FileTable.open(files, directory);
  assert.equal(shownOf(table), shown);
  await table.close();
});

test('a journal of an older Rouse, without marks, opens; one of a newer does not', async () => {
  const { files, shown, bytes } = await lived(5);
  const lines = bytes.toString().split('\n');
  const { crc32 } = await import('node:zlib');
  const line = (value: unknown) => {
    const json = JSON.stringify(value);
    return `${crc32(json).toString(16).padStart(8, '0')} ${json}`;
  };
  const heading = JSON.parse(lines[0]?.slice(9) ?? '');
  const rest = lines.slice(1).filter((one) => !one.includes('{"durable":'));
  const withFormat = (format: number) =>
    Buffer.from([line({ ...heading, format }), ...rest].join('\n'));
  await replace(files, withFormat(1));
  const table = await FileTable.open(files, directory);
  assert.equal(shownOf(table), shown);
  await table.close();
  await replace(files, withFormat(3));
  await assert.rejects(FileTable.open(files, directory), { code: 'newer-format' });
});

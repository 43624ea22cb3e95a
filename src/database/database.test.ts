import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { sql } from 'kysely';
import { isRouseError } from '../errors.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { type Database, nextNumber, openDatabase } from './database.ts';
import { migrate, migrations } from './migrations.ts';

const clock = new FakeClock();
let directory: string;
let path: string;
let database: Database;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'rouse-database-'));
  path = join(directory, 'rouse.sqlite');
  database = await openDatabase({ path, clock });
});

afterEach(async () => {
  await database.close();
  await rm(directory, { recursive: true });
});

function addEvent(seq: number): Promise<unknown> {
  const event = { seq, timeMs: 1, level: 'info', kind: 'test', message: `m${seq}` } as const;
  return database.query.insertInto('events').values(event).execute();
}

async function seqs(): Promise<number[]> {
  const rows = await database.query.selectFrom('events').select('seq').orderBy('seq').execute();
  return rows.map((row) => row.seq);
}

test('what was committed is there after reopening', async () => {
  await database.transaction(() => addEvent(1));
  await database.close();
  database = await openDatabase({ path, clock });
  assert.deepEqual(await seqs(), [1]);
});

test('a transaction is all or nothing, its inner ones included', async () => {
  await assert.rejects(
    database.transaction(async () => {
      await addEvent(1);
      await database.transaction(() => addEvent(2));
      throw new Error('no');
    }),
    /no/,
  );
  assert.deepEqual(await seqs(), []);
});

test('a failed inner transaction fails the outer one even when its error is caught', async () => {
  await assert.rejects(
    database.transaction(async () => {
      await addEvent(1);
      await database
        .transaction(async () => {
          await addEvent(2);
          throw new Error('inner');
        })
        .catch(() => undefined);
    }),
    /inner/,
  );
  assert.deepEqual(await seqs(), []);
});

test('transactions run one after the other', async () => {
  const order: string[] = [];
  const slow = Promise.withResolvers<void>();
  const first = database.transaction(async () => {
    order.push('first begins');
    await slow.promise;
    await addEvent(1);
    order.push('first ends');
  });
  const second = database.transaction(async () => {
    order.push('second begins');
    await addEvent(2);
  });
  await new Promise((resolve) => setImmediate(resolve));
  slow.resolve();
  await Promise.all([first, second]);
  assert.deepEqual(order, ['first begins', 'first ends', 'second begins']);
});

test('effects wait for the commit and are dropped with it', async () => {
  const effects: string[] = [];
  await database.transaction(async () => {
    database.afterCommit(() => effects.push('kept'));
    await addEvent(1);
    assert.deepEqual(effects, []);
  });
  assert.deepEqual(effects, ['kept']);
  await assert.rejects(
    database.transaction(async () => {
      database.afterCommit(() => effects.push('dropped'));
      throw new Error('no');
    }),
  );
  assert.deepEqual(effects, ['kept']);
  database.afterCommit(() => effects.push('at once'));
  assert.deepEqual(effects, ['kept', 'at once']);
});

test('work left over from a transaction does not write into the next one', async () => {
  const later = Promise.withResolvers<void>();
  let leaked: Promise<unknown> = Promise.resolve();
  await database.transaction(async () => {
    leaked = later.promise.then(() => addEvent(1));
    await addEvent(2);
  });
  await assert.rejects(
    database.transaction(async () => {
      later.resolve();
      await addEvent(3);
      throw new Error('no');
    }),
  );
  await leaked;
  assert.deepEqual(await seqs(), [1, 2]);
});

test('who waits for a transaction that never ends is told so', async () => {
  const never = Promise.withResolvers<void>();
  const held = database.transaction(() => never.promise);
  const waiting = assert.rejects(seqs(), (error) => isRouseError(error, 'time-out'));
  await clock.advance(30_000);
  await waiting;
  never.resolve();
  await held;
  assert.deepEqual(await seqs(), []);
});

test('effects run in commit order', async () => {
  const committed: number[] = [];
  const works = Array.from({ length: 100 }, (_, n) =>
    database.transaction(async () => {
      for (let wait = (n * 7) % 5; wait > 0; wait--) await Promise.resolve();
      const seq = await nextNumber(database, 'order');
      database.afterCommit(() => committed.push(seq));
    }),
  );
  await Promise.all(works);
  assert.deepEqual(
    committed,
    Array.from({ length: 100 }, (_, n) => n + 1),
  );
});

test('a power cut keeps every acknowledged commit, whatever it tears', async () => {
  const { rows } = await sql<{ synchronous: number }>`pragma synchronous`.execute(database.query);
  // 2 is FULL: the log is synced before a commit returns.
  assert.equal(rows[0]?.synchronous, 2);
  const acknowledged: { seq: number; walBytes: number }[] = [];
  for (let seq = 1; seq <= 20; seq++) {
    await database.transaction(() => addEvent(seq));
    acknowledged.push({ seq, walBytes: (await stat(`${path}-wal`)).size });
  }
  const [main, wal] = [await readFile(path), await readFile(`${path}-wal`)];
  const random = new SeededRandom(1);
  for (let cut = 0; cut < 40; cut++) {
    const lengthBytes = random.below(wal.length + 1);
    const torn = Buffer.concat([wal.subarray(0, lengthBytes), random.bytes(random.below(5_000))]);
    const copy = join(directory, `cut-${cut}`);
    await writeFile(copy, main);
    await writeFile(`${copy}-wal`, torn);
    const kept = acknowledged.filter(({ walBytes }) => walBytes <= lengthBytes);
    if (kept.length === 0) continue;
    const after = await openDatabase({ path: copy, clock });
    const found = await after.query.selectFrom('events').select('seq').orderBy('seq').execute();
    await after.close();
    assert.deepEqual(
      found.map(({ seq }) => seq),
      kept.map(({ seq }) => seq),
      `cut at ${lengthBytes}`,
    );
  }
});

test('counters only grow, also across transactions that fail', async () => {
  assert.equal(await nextNumber(database, 'x'), 1);
  await assert.rejects(
    database.transaction(async () => {
      assert.equal(await nextNumber(database, 'x'), 2);
      throw new Error('no');
    }),
  );
  assert.equal(await nextNumber(database, 'x'), 2);
  assert.equal(await nextNumber(database, 'y'), 1);
});

test('a duplicate key and a missing parent are errors of ours', async () => {
  await addEvent(1);
  await assert.rejects(addEvent(1), (error) => isRouseError(error, 'already-exists'));
  const orphan = {
    id: 's1',
    machineId: 'nobody',
    machineName: 'x',
    mtree: 'main',
    kind: 'full',
    takenAtMs: 1,
    record: '{}',
  } as const;
  await assert.rejects(database.query.insertInto('savesets').values(orphan).execute(), /FOREIGN/);
});

test('a database of a later version is refused and left alone', async () => {
  const number = migrations.length + 1;
  const future = { number, name: 'future', appliedMs: 1 };
  await database.query.insertInto('migrations').values(future).execute();
  await database.close();
  await assert.rejects(openDatabase({ path, clock }), (error) =>
    isRouseError(error, 'newer-format'),
  );
  database = await openDatabase({ path: ':memory:', clock });
});

test('a migration that fails leaves nothing of itself', async () => {
  const broken = {
    name: 'broken',
    up: async () => {
      await database.query.schema.createTable('half').addColumn('id', 'text').execute();
      throw new Error('broken');
    },
  };
  await assert.rejects(migrate(database, path, clock, [...migrations, broken]), /broken/);
  const tables = await database.query.introspection.getTables();
  assert.ok(!tables.some((table) => table.name === 'half'));
  assert.ok(tables.some((table) => table.name === 'runs'));
  await migrate(database, path, clock);
});

test('a file that is no database is named as such', async () => {
  const other = join(directory, 'other');
  await writeFile(
    other,
    'this is a text file, long enough to have a header of one hundred bytes'.repeat(9),
  );
  await assert.rejects(openDatabase({ path: other, clock }), (error) =>
    isRouseError(error, 'corrupt-data'),
  );
});

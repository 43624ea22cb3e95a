import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { BackupPlace } from '../hypervisors/port.ts';
import { SeededRandom } from '../testing/seeded-random.ts';
import { turnLimits } from './limits.ts';
import { BackupTurns } from './turns.ts';

const host = (id: string): BackupPlace => ({ kind: 'host', id, name: id });
const store = (id: string): BackupPlace => ({ kind: 'datastore', id, name: id });
const settled = () => new Promise((resolve) => setImmediate(resolve));

function scene() {
  const turns = new BackupTurns();
  const inside: string[] = [];
  const said = new Map<string, string>();
  const stops = new Map<string, AbortController>();
  const enter = (id: string, places: readonly BackupPlace[], hasBegun = false) => {
    const stop = new AbortController();
    stops.set(id, stop);
    const waits = (because: string) => void said.set(id, because);
    return turns.enter(id, places, { hasBegun, signal: stop.signal, waits }).then(
      () => void inside.push(id),
      () => void said.set(id, 'gave up'),
    );
  };
  const leave = (id: string) => {
    inside.splice(inside.indexOf(id), 1);
    turns.leave(id);
  };
  return { turns, inside, said, stops, enter, leave };
}

test('a host takes so many at once, the next waits, says why, and comes when one leaves', async () => {
  const { inside, said, enter, leave } = scene();
  const ids = Array.from({ length: turnLimits.perHostMax + 1 }, (_, index) => `b${index}`);
  for (const id of ids) void enter(id, [host('esx1')]);
  await settled();
  const last = ids.at(-1) ?? '';
  assert.deepEqual(inside, ids.slice(0, -1));
  assert.equal(said.get(last), `host esx1: ${turnLimits.perHostMax} backups read there`);
  void enter('elsewhere', [host('esx2')]);
  await settled();
  assert.ok(inside.includes('elsewhere'), 'another host is free');
  leave('b0');
  await settled();
  assert.ok(inside.includes(last));
});

test('one that wants two places is not passed by for ever', async () => {
  const { inside, enter, leave } = scene();
  for (let count = 0; count < turnLimits.perDatastoreMax; count += 1) {
    void enter(`full${count}`, [store('slow')]);
  }
  void enter('both', [host('esx1'), store('slow')]);
  for (let count = 0; count < turnLimits.perHostMax; count += 1) {
    void enter(`late${count}`, [host('esx1')]);
  }
  await settled();
  assert.ok(!inside.some((id) => id.startsWith('late')), 'its host is kept for it');
  leave('full0');
  await settled();
  assert.ok(inside.includes('both'));
  assert.ok(inside.includes('late0'));
});

test('who had begun before a restart comes in at once, and counts', async () => {
  const { inside, enter } = scene();
  for (let count = 0; count <= turnLimits.perHostMax; count += 1) {
    void enter(`begun${count}`, [host('esx1')], true);
  }
  void enter('new', [host('esx1')]);
  await settled();
  assert.equal(inside.length, turnLimits.perHostMax + 1);
  assert.ok(!inside.includes('new'));
});

test('who gives up while waiting lets the next one in', async () => {
  const { inside, said, stops, enter, leave } = scene();
  for (let count = 0; count < turnLimits.perHostMax; count += 1) {
    void enter(`b${count}`, [host('esx1')]);
  }
  void enter('gone', [host('esx1')]);
  void enter('next', [host('esx1')]);
  await settled();
  void enter('behind', [host('esx1'), host('esx2')]);
  void enter('free', [host('esx2')]);
  stops.get('gone')?.abort('cancelled');
  stops.get('behind')?.abort('cancelled');
  await settled();
  assert.ok(inside.includes('free'), 'nobody waits for that host any more');
  leave('b0');
  await settled();
  assert.equal(said.get('gone'), 'gave up');
  assert.ok(inside.includes('next'));
});

test('by seed: no place is ever over its limit, and everybody gets in', async () => {
  for (let seed = 1; seed <= 40; seed += 1) {
    const random = new SeededRandom(seed);
    const { inside, enter, leave } = scene();
    const wants = new Map<string, readonly BackupPlace[]>();
    for (let count = 0; count < 30; count += 1) {
      const places = [host(`esx${random.below(3)}`), store(`ds${random.below(3)}`)];
      wants.set(`b${count}`, places);
      void enter(`b${count}`, places);
    }
    let served = 0;
    while (served < wants.size) {
      await settled();
      const load = new Map<string, number>();
      for (const id of inside) {
        for (const place of wants.get(id) ?? []) {
          const now = (load.get(place.id) ?? 0) + 1;
          load.set(place.id, now);
          const most = place.kind === 'host' ? turnLimits.perHostMax : turnLimits.perDatastoreMax;
          assert.ok(now <= most, `seed ${seed}: ${place.id} has ${now}`);
        }
      }
      const next = inside[random.below(inside.length)];
      assert.ok(next !== undefined, `seed ${seed}: somebody waits and nobody reads`);
      leave(next);
      served += 1;
    }
  }
});

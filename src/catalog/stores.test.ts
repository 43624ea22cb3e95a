import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { type Database, openDatabase } from '../database/database.ts';
import { isRouseError, type RouseError } from '../errors.ts';
import { storeLimits } from '../limits.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import type { Saveset } from '../vault/api.ts';
import { Backups } from './backups.ts';
import { Devices } from './devices.ts';
import { Events } from './events.ts';
import { Hypervisors } from './hypervisors.ts';
import { Machines } from './machines.ts';
import { type NewRecovery, Recoveries } from './recoveries.ts';
import { Savesets } from './savesets.ts';

const clock = new FakeClock();
let directory: string;
let path: string;
let database: Database;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'rouse-catalog-'));
  path = join(directory, 'rouse.sqlite');
  database = await openDatabase({ path, clock });
});

afterEach(async () => {
  await database.close();
  await rm(directory, { recursive: true });
});

const web = { id: 'm-web01', name: 'web01' };
const data = { id: 'm-db01', name: 'db01' };

function saveset(id: string, takenAtMs: number, machine = web): Saveset {
  return {
    id,
    mtree: 'main',
    machine,
    takenAtMs,
    kind: 'full',
    consistency: 'crash',
    disks: [
      { name: 'vda', root: { hash: 'ab', depth: 1, sizeBytes: 2 ** 44 }, source: '/images/a' },
    ],
    files: [],
    cost: { readBytes: 1, zeroBytes: 2, knownBytes: 3, newBytes: 4, storedBytes: 5 },
    labels: { 'rouse.note': 'ünïcode' },
  };
}

const newRecovery: NewRecovery = {
  id: 'r1',
  machineId: 'm-web01',
  savesetId: 's1',
  mode: 'instant',
  name: 'web01',
  state: 'starting',
  createdMs: 5,
  options: { powerOn: true, clients: [] },
};

test('a recovery comes back as it was put in, also after reopening', async () => {
  await new Recoveries(database).insert(newRecovery);
  await database.close();
  database = await openDatabase({ path, clock });
  const row = await new Recoveries(database).get('r1');
  assert.deepEqual(row.options, newRecovery.options);
  assert.deepEqual(row.clients, []);
  assert.deepEqual(row.warnings, []);
  assert.equal(row.error, null);
  assert.equal(row.host, null);
  assert.equal(row.state, 'starting');
});

test('a patch changes what it names and nothing else', async () => {
  const recoveries = new Recoveries(database);
  await recoveries.insert({ ...newRecovery, host: 'host1' });
  const error = { code: 'busy', message: 'm', advice: 'a' };
  await recoveries.update('r1', { state: 'available', warnings: ['w'], error });
  const row = await recoveries.get('r1');
  assert.equal(row.host, 'host1');
  assert.deepEqual(row.warnings, ['w']);
  assert.deepEqual(row.error, error);
  await recoveries.update('r1', { error: null, host: null });
  const { error: gone, host, warnings } = await recoveries.get('r1');
  assert.deepEqual({ gone, host, warnings }, { gone: null, host: null, warnings: ['w'] });
  await recoveries.update('r1', {});
  await assert.rejects(recoveries.update('r2', { state: 'done' }), isNotFound);
  await assert.rejects(recoveries.get('r2'), isNotFound);
  await assert.rejects(recoveries.insert(newRecovery), (e) => isRouseError(e, 'already-exists'));
});

test('a state changes only from the states named', async () => {
  const recoveries = new Recoveries(database);
  await recoveries.insert(newRecovery);
  assert.equal(await recoveries.updateWhile('r1', ['available'], { state: 'cleaning' }), false);
  assert.equal((await recoveries.get('r1')).state, 'starting');
  assert.equal(await recoveries.updateWhile('r1', ['starting'], { state: 'available' }), true);
  assert.equal((await recoveries.get('r1')).state, 'available');
});

test('recoveries are listed newest first, by state and machine', async () => {
  const recoveries = new Recoveries(database);
  await recoveries.insert({ ...newRecovery, id: 'old', createdMs: 1, state: 'done' });
  await recoveries.insert({ ...newRecovery, id: 'new', createdMs: 9, machineId: 'm-db01' });
  await recoveries.insert({ ...newRecovery, id: 'mid', createdMs: 5, state: 'parked' });
  const ids = async (filter: Parameters<Recoveries['list']>[0]) =>
    (await recoveries.list(filter)).map((row) => row.id);
  assert.deepEqual(await ids({}), ['new', 'mid', 'old']);
  assert.deepEqual(await ids({ active: true }), ['new', 'mid']);
  assert.deepEqual(await ids({ active: false }), ['old']);
  assert.deepEqual(await ids({ states: ['parked', 'done'] }), ['mid', 'old']);
  assert.deepEqual(await ids({ states: [] }), []);
  assert.deepEqual(await ids({ machineId: 'm-db01' }), ['new']);
});

test('backups begin as running and keep their cost and warnings', async () => {
  const backups = new Backups(database);
  const begun = { id: 'b1', machineId: 'm', machineName: 'web01', startedMs: 1 };
  assert.deepEqual(await backups.insert(begun), {
    ...begun,
    kind: null,
    state: 'running',
    savesetId: null,
    fullBecause: null,
    consistency: null,
    warnings: [],
    cost: null,
    endedMs: null,
    error: null,
  });
  const { cost } = saveset('s', 1);
  await backups.update('b1', { state: 'done', cost, warnings: ['slow'], kind: 'full' });
  await backups.insert({ ...begun, id: 'b2', startedMs: 2 });
  const all = await backups.list({});
  assert.deepEqual(
    all.map((row) => row.id),
    ['b2', 'b1'],
  );
  assert.deepEqual(all[1]?.cost, cost);
  assert.equal((await backups.list({ state: 'running' })).length, 1);
  assert.equal((await backups.list({ machineId: 'other' })).length, 0);
  await assert.rejects(backups.update('b3', { state: 'done' }), isNotFound);
});

test('savesets are found by machine and time; putting one twice changes it', async () => {
  const savesets = new Savesets(database);
  await savesets.put(saveset('s1', 100), 'device');
  await savesets.put(saveset('s2', 200), 'device');
  await savesets.put(saveset('s3', 150, data), 'device');
  assert.deepEqual(await savesets.get('s1'), saveset('s1', 100));
  assert.equal(await savesets.deviceOf('s1'), 'device');
  const ids = async (filter: Parameters<Savesets['list']>[0]) =>
    (await savesets.list(filter)).map(({ id }) => id);
  assert.deepEqual(await ids({}), ['s2', 's3', 's1']);
  assert.deepEqual(await ids({ machineId: web.id }), ['s2', 's1']);
  assert.deepEqual(await ids({ fromMs: 150, untilMs: 199 }), ['s3']);
  assert.deepEqual(await ids({ mtree: 'other' }), []);
  await savesets.put(saveset('s1', 300), 'device');
  assert.deepEqual(await ids({ limit: 1 }), ['s1']);
  await savesets.remove('s1');
  await savesets.remove('s1');
  await assert.rejects(savesets.get('s1'), isNotFound);
});

test('rebuilding makes the copies equal to the vault and remembers the machines', async () => {
  const savesets = new Savesets(database);
  const machines = new Machines(database);
  await machines.put({ ...web, uuid: 'u', hypervisorId: 'h', lastSeenMs: 1 });
  await savesets.put(saveset('gone', 1), 'device');
  await savesets.put(saveset('stays', 2), 'device');
  await savesets.put(saveset('elsewhere', 3), 'other device');
  const vault = [saveset('stays', 2), saveset('new', 4, data)];
  assert.deepEqual(await savesets.rebuild(vault, 'device'), { added: 1, removed: 1 });
  assert.deepEqual(
    (await savesets.list()).map(({ id }) => id),
    ['new', 'elsewhere', 'stays'],
  );
  assert.deepEqual(await savesets.rebuild(vault, 'device'), { added: 0, removed: 0 });
  assert.equal((await machines.get(web.id)).hypervisorId, 'h');
  assert.equal((await machines.get(data.id)).hypervisorId, null);
});

test('a saveset is chosen as the latest, or the last at or before a time', async () => {
  const savesets = new Savesets(database);
  await assert.rejects(savesets.choose(web, 'latest'), advises(/^Back it up first.*web01$/));
  await savesets.put(saveset('s3', 1, data));
  await assert.rejects(savesets.choose(web, 'latest'), advises(/savesets of db01/));
  for (const at of [3_000, 1_000, 2_000]) await savesets.put(saveset(`s${at}`, at));
  assert.equal((await savesets.choose(web, 'latest')).id, 's3000');
  assert.equal((await savesets.choose(web, 2_999)).id, 's2000');
  assert.equal((await savesets.choose(web, 2_000)).id, 's2000');
  await assert.rejects(savesets.choose(web, 999), advises(/s1000/));
});

test('names of devices and hypervisors are unique, and people are told so', async () => {
  const devices = new Devices(database);
  const device = {
    id: 'd1',
    name: 'vault',
    kind: 'directory',
    address: '/v',
    createdMs: 1,
  } as const;
  await devices.put({ ...device, vaultId: 'v1' });
  await devices.put({ ...device, vaultId: 'v2' });
  assert.equal((await devices.find('d1'))?.vaultId, 'v2');
  await assert.rejects(devices.put({ ...device, id: 'd2', vaultId: 'v' }), /called "vault"/);
  assert.equal((await devices.list()).length, 1);
  await devices.remove('d1');
  assert.equal(await devices.find('d1'), undefined);

  const hypervisors = new Hypervisors(database);
  const options = { datastores: [{ name: 'prod', path: '/prod' }] };
  const added = { id: 'h1', name: 'here', kind: 'libvirt', uri: 'qemu:///system', addedMs: 1 };
  await hypervisors.put({ ...added, options });
  assert.deepEqual(await hypervisors.get('h1'), { ...added, options });
  await assert.rejects(hypervisors.put({ ...added, id: 'h2', options }), /called "here"/);
  await hypervisors.put({ ...added, id: 'h3', name: 'there', options: {} });
  await hypervisors.update('h3', { uri: 'qemu:///session' });
  assert.equal((await hypervisors.get('h3')).uri, 'qemu:///session');
  assert.deepEqual((await hypervisors.get('h3')).options, {});
  await assert.rejects(hypervisors.update('h3', { name: 'here' }), /called "here"/);
  await assert.rejects(hypervisors.update('h4', { uri: 'x' }), isNotFound);
});

test('a removed hypervisor leaves its machines, without it', async () => {
  const hypervisors = new Hypervisors(database);
  const machines = new Machines(database);
  const uri = 'qemu:///session';
  await hypervisors.put({ id: 'h1', name: 'h', kind: 'libvirt', uri, addedMs: 1, options: {} });
  await machines.put({ ...web, uuid: 'u', hypervisorId: 'h1', lastSeenMs: 1 });
  await hypervisors.remove('h1');
  await hypervisors.remove('h1');
  await assert.rejects(hypervisors.get('h1'), isNotFound);
  assert.equal((await machines.byUuid('u'))[0]?.hypervisorId, null);
  await assert.rejects(machines.get('nobody'), isNotFound);
});

test('events keep their order, come in pages, and are heard once durable', async () => {
  const events = new Events(database, clock);
  const heard: number[] = [];
  const off = events.onAppend(({ seq }) => heard.push(seq));
  const subject = { kind: 'recovery', id: 'r1', name: 'web01' };
  const add = (message: string, about: typeof subject | null = null) =>
    events.append({ level: 'info', kind: 'test', subject: about, message });
  for (const message of ['a', 'b', 'c', 'd']) await add(message, message < 'c' ? subject : null);
  await assert.rejects(
    database.transaction(async () => {
      await add('rolled back');
      throw new Error('no');
    }),
  );
  assert.deepEqual(heard, [1, 2, 3, 4]);
  off();
  await add('e');
  assert.equal(heard.length, 4);
  const texts = (rows: readonly { message: string }[]) => rows.map((row) => row.message).join('');
  assert.equal(texts(await events.page({ limit: 2 })), 'de');
  assert.equal(texts(await events.page({ limit: 2, before: 4 })), 'bc');
  assert.equal(texts(await events.page({ limit: 9, after: 2 })), 'cde');
  assert.equal(texts(await events.page({ limit: 9, subjectId: 'r1' })), 'ab');
  assert.equal(texts(await events.page({ limit: 2, after: 1 })), 'bc');
  assert.equal(texts(await events.page({ limit: 2, after: 5 })), '');
});

test('the oldest events are dropped', async () => {
  const events = new Events(database, clock);
  const add = () => events.append({ level: 'info', kind: 'test', subject: null, message: 'x' });
  await add();
  const nearlyFull = storeLimits.eventsKeptMax + storeLimits.eventsSweepEvery - 1;
  await database.query.updateTable('counters').set({ value: nearlyFull }).execute();
  await add();
  assert.equal((await events.page({ limit: 9 })).length, 1);
});

function isNotFound(error: unknown): boolean {
  return isRouseError(error, 'not-found');
}

function advises(pattern: RegExp): (error: RouseError) => boolean {
  return (error) => isNotFound(error) && pattern.test(error.advice);
}

import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import type { HostFacts, PastMount, PlacementFacts, ProxyFacts } from './port.ts';
import { rankCandidates, winnerOf } from './scoring.ts';

const proxy = (name: string, more: Partial<ProxyFacts> = {}): ProxyFacts => ({
  name,
  state: 'connected',
  problem: null,
  addresses: ['10.1.0.2'],
  networks: ['10.1.0.2/24'],
  devices: ['vault'],
  labels: {},
  onlyFor: [],
  neverFor: [],
  loadShare: 0,
  freeShare: 1,
  isWarm: false,
  ...more,
});

const host = (name: string, more: Partial<HostFacts> = {}): HostFacts => ({
  id: `id-of-${name}`,
  name,
  state: 'connected',
  addresses: ['10.1.0.11'],
  cluster: null,
  hypervisor: { id: 'vc', name: 'vc' },
  nfsSlots: null,
  recoveries: 0,
  ...more,
});

const facts = (more: Partial<PlacementFacts> = {}): PlacementFacts => ({
  device: { id: 'vault', name: 'vault' },
  machineId: 'uuid',
  hosts: [host('esx1')],
  wanted: { proxy: null, hostId: null },
  without: [],
  prefer: {},
  datastore: null,
  mounts: true,
  proxies: [proxy('a')],
  pastMounts: [],
  reach: [],
  ...more,
});

const winner = (more: Partial<PlacementFacts>) => winnerOf(rankCandidates(facts(more)));
const refusals = (more: Partial<PlacementFacts>) =>
  rankCandidates(facts(more))[0]?.refusals.map(({ text }) => text);

test('several independent clusters in one vCenter, each with a proxy of its own', () => {
  // No network of one reaches another; no label, no pin says so: the addresses do.
  const networks = ['red', 'green', 'blue'].map((name, index) => ({ name, base: `10.${index}.0` }));
  const proxies = networks.map(({ name, base }) =>
    proxy(`proxy-${name}`, { addresses: [`${base}.2`], networks: [`${base}.2/24`] }),
  );
  const hosts = networks.flatMap(({ name, base }) =>
    [1, 2].map((number) =>
      host(`${name}-esx${number}`, {
        addresses: [`${base}.${10 + number}`, `fd00:${name.length}::${number}`],
        cluster: { id: `domain-${name}`, name },
      }),
    ),
  );
  for (const { name } of networks) {
    for (const number of [1, 2]) {
      const hostId = `id-of-${name}-esx${number}`;
      const chosen = winner({ proxies, hosts, wanted: { proxy: null, hostId } });
      assert.equal(chosen?.proxy, `proxy-${name}`);
    }
    // The proxy of a busy cluster is still the right one: idle ones elsewhere cannot serve it.
    const busy = proxies.map((one) =>
      one.name === `proxy-${name}` ? { ...one, loadShare: 1 } : { ...one, isWarm: true },
    );
    const hostId = `id-of-${name}-esx1`;
    const chosen = winner({ proxies: busy, hosts, wanted: { proxy: null, hostId } });
    assert.equal(chosen?.proxy, `proxy-${name}`);
  }
  // Left free, host and proxy are of one cluster.
  const free = winner({ proxies, hosts });
  assert.equal(free?.proxy, `proxy-${free?.cluster}`);
});

test('the address that shares a network with the host is the one it mounts from', () => {
  const both = proxy('a', {
    addresses: ['10.1.0.2', 'fd77::1', '10.9.0.2'],
    networks: ['10.1.0.2/24', 'fd77::1/64', '10.9.0.2/24'],
  });
  const at = (addresses: string[]) =>
    winner({ proxies: [both], hosts: [host('esx1', { addresses })] })?.address;
  assert.equal(at(['10.9.0.11']), '10.9.0.2');
  assert.equal(at(['fd77::11', '172.16.0.1']), 'fd77::1');
  assert.equal(at(['172.16.0.1']), '10.1.0.2');
});

test('what is certain refuses, and says why', () => {
  const a = (more: Partial<ProxyFacts>) => ({ proxies: [proxy('a', more)] });
  const h = (more: Partial<HostFacts>) => ({ hosts: [host('esx1', more)] });
  const cases: [Partial<PlacementFacts>, string][] = [
    [a({ state: 'disconnected' }), 'proxy a does not answer'],
    [a({ state: 'draining' }), 'proxy a is draining'],
    [a({ problem: 'update it' }), 'proxy a: update it'],
    [a({ devices: [] }), 'proxy a has no access to device vault'],
    [a({ onlyFor: ['B', 'C'] }), 'proxy a serves B, C only'],
    [a({ neverFor: ['vc'] }), 'proxy a never serves vc'],
    [a({ addresses: ['fd77::1'] }), 'proxy a and the host have no address family in common'],
    [a({ addresses: [] }), 'proxy a has said no address'],
    [h({ state: 'maintenance' }), 'the host is in maintenance'],
    [h({ state: 'disconnected' }), 'the host is disconnected'],
    [h({ nfsSlots: { used: 8, max: 8 } }), 'the host has no NFS datastore free: 8 of 8 are used'],
    [{ datastore: { name: 'prod', hostIds: [] } }, 'the host does not see datastore prod'],
    [{ wanted: { proxy: 'b', hostId: null } }, 'proxy b was asked for'],
    [{ wanted: { proxy: null, hostId: 'x' } }, 'another host was asked for'],
    [{ without: ['a'] }, 'proxy a was excluded'],
    [{ without: ['esx1'] }, 'host esx1 was excluded'],
    [
      { reach: [{ proxy: 'a', address: '10.1.0.11', answer: 'no route' }] },
      'proxy a has no route to any address of the host',
    ],
  ];
  for (const [more, text] of cases) assert.deepEqual(refusals(more), [text]);
  assert.deepEqual(refusals(h({ addresses: [] }))?.[0], 'the host has no address');
});

test('a full restore mounts nothing: slots and networks refuse nothing', () => {
  const full = host('esx1', { nfsSlots: { used: 8, max: 8 }, addresses: [] });
  assert.deepEqual(refusals({ mounts: false, hosts: [full] }), []);
});

test('what is likely counts: the past, a probe, labels, load, warmth', () => {
  const two = (b: Partial<ProxyFacts>, more: Partial<PlacementFacts> = {}) =>
    winner({ proxies: [proxy('a'), proxy('b', b)], ...more })?.proxy;
  const past = (more: Partial<PastMount>): PastMount => ({
    proxy: 'b',
    address: '10.1.0.2',
    hypervisorId: 'vc',
    hostId: 'id-of-esx1',
    clusterId: null,
    okMs: 5,
    failedMs: null,
    error: null,
    ...more,
  });
  assert.equal(two({}), 'a', 'a tie goes by name');
  assert.equal(two({ isWarm: true }), 'b');
  assert.equal(two({ isWarm: true, loadShare: 1 }), 'a');
  assert.equal(two({ labels: { cluster: 'B' } }), 'a');
  const inB = { hosts: [host('esx1', { cluster: { id: 'c', name: 'B' } })] };
  assert.equal(two({ labels: { cluster: 'B' } }, inB), 'b');
  assert.equal(two({ labels: { site: 'x' } }, { prefer: { site: 'x' } }), 'b');
  assert.equal(two({}, { pastMounts: [past({})] }), 'b');
  assert.equal(two({ isWarm: true }, { pastMounts: [past({ failedMs: 9, error: 'no' })] }), 'a');
  const sibling = past({ hostId: 'id-of-esx2', clusterId: 'c' });
  assert.equal(two({}, { ...inB, pastMounts: [sibling] }), 'b');
  assert.equal(two({}, { reach: [{ proxy: 'b', address: '10.1.0.11', answer: 'answers' }] }), 'b');
  assert.equal(two({}, { reach: [{ proxy: 'b', address: '10.1.0.11', answer: 'silent' }] }), 'a');
  assert.equal(
    two({ freeShare: 1 }, { proxies: [proxy('a', { freeShare: 0.05 }), proxy('b')] }),
    'b',
  );
});

test('loopback serves its own machine, and is the last resort for others', () => {
  const local = proxy('local', { addresses: ['127.0.0.1', '10.1.0.2'] });
  const here = host('here', { addresses: ['127.0.0.1', '10.1.0.2', '::1'] });
  assert.equal(winner({ proxies: [local], hosts: [here] })?.address, '127.0.0.1');
  assert.equal(winner({ proxies: [local] })?.address, '10.1.0.2');
  const alone = winner({ proxies: [proxy('local', { addresses: ['127.0.0.1'] })] });
  assert.match(alone?.reasons[0]?.text ?? '', /its own machine alone/);
});

test('recoveries spread over hosts that are equal', () => {
  const hosts = [host('esx1', { recoveries: 2 }), host('esx2', { recoveries: 1 })];
  assert.equal(winner({ hosts })?.host, 'esx2');
});

// Any facts at all -------------------------------------------------------------------------------

const address = fc.constantFrom('10.1.0.2', '10.1.0.3', '10.2.0.2', 'fd77::1', '127.0.0.1', '::1');
const network = address.map((text) => `${text}/${text.includes(':') ? 64 : 24}`);
const word = fc.constantFrom('A', 'B', 'C');
const share = fc.double({ min: 0, max: 1.5, noNaN: true });
const anyProxy = fc.record<ProxyFacts>({
  name: fc.constantFrom('p1', 'p2', 'p3', 'p4'),
  state: fc.constantFrom('connected', 'connected', 'connected', 'disconnected', 'draining'),
  problem: fc.constantFrom(null, null, 'old'),
  addresses: fc.uniqueArray(address, { maxLength: 3 }),
  networks: fc.uniqueArray(network, { maxLength: 3 }),
  devices: fc.constantFrom(['vault'], ['vault', 'other'], []),
  labels: fc.dictionary(fc.constantFrom('cluster', 'site', 'host'), word, { maxKeys: 2 }),
  onlyFor: fc.uniqueArray(word, { maxLength: 1 }),
  neverFor: fc.uniqueArray(word, { maxLength: 1 }),
  loadShare: share,
  freeShare: share,
  isWarm: fc.boolean(),
});
const anyHost = fc
  .record<HostFacts>({
    id: fc.constantFrom('h1', 'h2', 'h3', 'h4'),
    name: fc.constantFrom('A', 'esx', 'esy'),
    state: fc.constantFrom('connected', 'connected', 'disconnected', 'maintenance'),
    addresses: fc.uniqueArray(address, { maxLength: 3 }),
    cluster: fc.option(word.map((name) => ({ id: name, name }))),
    hypervisor: fc.constant({ id: 'vc', name: 'vc' }),
    nfsSlots: fc.option(fc.record({ used: fc.nat(9), max: fc.nat(9) })),
    recoveries: fc.nat(9),
  })
  .map((one) => ({ ...one, name: `${one.name}-${one.id}` }));
const anyFacts = fc.record<PlacementFacts>({
  device: fc.constant({ id: 'vault', name: 'vault' }),
  machineId: fc.constant('uuid'),
  hosts: fc.uniqueArray(anyHost, { selector: ({ id }) => id, maxLength: 4 }),
  wanted: fc.record({
    proxy: fc.constantFrom(null, null, 'p1', 'gone'),
    hostId: fc.constantFrom(null, null, 'h1'),
  }),
  without: fc.uniqueArray(fc.constantFrom('p1', 'esx-h2'), { maxLength: 1 }),
  prefer: fc.dictionary(fc.constant('site'), word, { maxKeys: 1 }),
  datastore: fc.option(fc.constant({ name: 'prod', hostIds: ['h1', 'h2', 'h3'] })),
  mounts: fc.boolean(),
  proxies: fc.uniqueArray(anyProxy, { selector: ({ name }) => name, maxLength: 4 }),
  pastMounts: fc.array(
    fc.record<PastMount>({
      proxy: fc.constantFrom('p1', 'p2'),
      address,
      hypervisorId: fc.constant('vc'),
      hostId: fc.constantFrom('h1', 'h2'),
      clusterId: fc.option(word),
      okMs: fc.option(fc.nat(5)),
      failedMs: fc.option(fc.nat(5)),
      error: fc.constant('no'),
    }),
    { maxLength: 3 },
  ),
  reach: fc.array(
    fc.record({
      proxy: fc.constantFrom('p1', 'p2'),
      address,
      answer: fc.constantFrom('answers', 'silent', 'no route'),
    }),
    { maxLength: 4 },
  ),
});

test('property: every pair is ranked once, and no refused one wins', () => {
  fc.assert(
    fc.property(anyFacts, (all) => {
      const ranked = rankCandidates(all);
      assert.equal(ranked.length, all.proxies.length * all.hosts.length);
      const won = winnerOf(ranked);
      const usable = ranked.filter((one) => one.refusals.length === 0);
      assert.equal(won === undefined, usable.length === 0);
      for (const one of ranked) {
        assert.equal(
          one.score,
          one.reasons.reduce((sum, { points }) => sum + points, 0),
        );
      }
      if (won === undefined) return;
      assert.ok(usable.every(({ score }) => score <= won.score));
      const of = all.proxies.find(({ name }) => name === won.proxy);
      assert.ok(of?.state === 'connected' && of.devices.includes('vault'));
      assert.ok([null, won.proxy].includes(all.wanted.proxy));
      assert.ok([null, won.hostId].includes(all.wanted.hostId));
    }),
  );
});

test('property: the order of the facts changes nothing', () => {
  fc.assert(
    fc.property(anyFacts, (all) => {
      const turned = {
        ...all,
        proxies: all.proxies.toReversed(),
        hosts: all.hosts.toReversed(),
        reach: all.reach.toReversed(),
      };
      const names = (from: PlacementFacts) =>
        rankCandidates(from).map(({ proxy: name, hostId, score }) => [name, hostId, score]);
      assert.deepEqual(names(turned), names(all));
    }),
  );
});

test('property: one candidate more wins itself, or changes nothing', () => {
  fc.assert(
    fc.property(anyFacts, anyProxy, (all, more) => {
      const before = winnerOf(rankCandidates(all));
      const extra = { ...more, name: 'p9' };
      const after = winnerOf(rankCandidates({ ...all, proxies: [...all.proxies, extra] }));
      if (after?.proxy !== 'p9') assert.deepEqual(after, before);
    }),
  );
});

test('property: a proxy that drains wins nothing, and takes no host from another', () => {
  fc.assert(
    fc.property(anyFacts, (all) => {
      const before = winnerOf(rankCandidates(all));
      const proxies = all.proxies.map((one) =>
        one.name === 'p1' ? { ...one, state: 'draining' as const } : one,
      );
      const after = winnerOf(rankCandidates({ ...all, proxies }));
      assert.notEqual(after?.proxy, 'p1');
      if (before?.proxy !== 'p1') assert.deepEqual(after, before);
    }),
  );
});

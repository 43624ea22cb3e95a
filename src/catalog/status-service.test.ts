import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryProxy } from '../testing/memory-proxy.ts';
import { stubStatus } from '../testing/stub-views.ts';
import type { HypervisorCatalog } from './hypervisor-service.ts';
import { StatusBoard } from './status-service.ts';

/** A proxy with one export, whose clone has that id. */
async function serving(cloneId: string): Promise<MemoryProxy> {
  const proxy = new MemoryProxy([]);
  const spec = { mtree: 'main', savesetId: 's', folder: 'web01', path: `/main/${cloneId}` };
  proxy.clonesById.set(cloneId, {
    ...spec,
    cloneId,
    disks: [],
    writtenBytes: 0,
    allocatedBytes: 0,
  });
  await proxy.createExport({ cloneId, clients: ['192.0.2.1'] });
  return proxy;
}

async function board(isEdgeAway: boolean): Promise<StatusBoard> {
  const local = await serving('Recover-local-a');
  const edge = await serving('Recover-edge-b');
  return new StatusBoard({
    server: stubStatus.server,
    hypervisors: { rows: async () => [] } as unknown as HypervisorCatalog,
    proxy: async () => local,
    proxies: async () => [
      { name: 'local', isAway: false, calls: local },
      { name: 'edge', isAway: isEdgeAway, calls: edge },
    ],
    machineCount: async () => 0,
    savesetCount: async () => 0,
    activeRecoveries: async () => [
      { id: 'b', name: 'web01', cloneId: 'Recover-edge-b', warnings: [] },
    ],
    runningBackups: async () => 0,
    leftByReconciler: () => 0,
  });
}

test('exports of all proxies are listed, each with its proxy and its recovery', async () => {
  const exports = await (await board(false)).list();
  assert.deepEqual(
    exports.map(({ proxy, cloneId, recovery }) => [proxy, cloneId, recovery?.id ?? null]),
    [
      ['local', 'Recover-local-a', null],
      ['edge', 'Recover-edge-b', 'b'],
    ],
  );
});

test('a proxy that is away is a warning, and hides nobody else', async () => {
  const away = await board(true);
  const { warnings } = await away.status();
  assert.ok(warnings.includes('Proxy edge does not answer: rouse proxy show edge'));
  assert.deepEqual(
    (await away.list()).map(({ proxy }) => proxy),
    ['local'],
  );
  const there = await (await board(false)).status();
  assert.deepEqual(
    there.warnings.filter((text) => text.startsWith('Proxy')),
    [],
  );
});

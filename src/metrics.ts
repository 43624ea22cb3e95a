import { collectDefaultMetrics, Counter, Gauge, Registry } from 'prom-client';
import type { ExportEntry, Status } from './catalog/schema.ts';

/** What Prometheus reads: made from the same views that people see, when it asks. */
export async function renderMetrics(
  status: Status,
  exports: readonly ExportEntry[],
): Promise<string> {
  const registry = new Registry();
  const gauge = (name: string, help: string, value: number) =>
    new Gauge({ name, help, registers: [registry] }).set(value);
  gauge(
    'rouse_recoveries_active',
    'Recoveries that hold something',
    status.counts.activeRecoveries,
  );
  gauge('rouse_backups_running', 'Backups that run', status.counts.runningBackups);
  gauge('rouse_machines', 'Machines known', status.counts.machines);
  gauge('rouse_savesets', 'Savesets in the vault', status.counts.savesets);
  gauge('rouse_proxy_up', '1: the proxy answers', status.proxy === null ? 0 : 1);
  gauge('rouse_warnings', 'Warnings that wait for a person', status.warnings.length);
  if (status.proxy !== null) {
    gauge('rouse_proxy_memory_bytes', 'Resident memory of the proxy', status.proxy.memoryBytes);
    gauge('rouse_space_free_bytes', 'Free where the vault lies', status.proxy.space.freeBytes);
    gauge('rouse_space_total_bytes', 'Size of where the vault lies', status.proxy.space.totalBytes);
  }
  if (status.vault !== null) {
    const { vault } = status;
    gauge('rouse_vault_logical_bytes', 'Sum of all disks of all savesets', vault.logicalBytes);
    gauge('rouse_vault_unique_bytes', 'Unique blocks before compression', vault.uniqueBytes);
    gauge('rouse_vault_stored_bytes', 'Bytes of packs', vault.storedBytes);
    gauge('rouse_vault_cache_used_bytes', 'Blocks in the cache', vault.cache.usedBytes);
    gauge('rouse_vault_cache_hits', 'Reads answered from the cache', vault.cache.hits);
    gauge('rouse_vault_cache_misses', 'Reads that were not', vault.cache.misses);
  }
  exportMetrics(registry, exports);
  collectDefaultMetrics({ register: registry, prefix: 'rouse_server_' });
  return registry.metrics();
}

function exportMetrics(registry: Registry, exports: readonly ExportEntry[]): void {
  const calls = new Counter({
    name: 'rouse_export_calls_total',
    help: 'NFS calls by export and kind',
    labelNames: ['export', 'kind'],
    registers: [registry],
  });
  const bytes = new Counter({
    name: 'rouse_export_bytes_total',
    help: 'Bytes read and written by export',
    labelNames: ['export', 'direction'],
    registers: [registry],
  });
  for (const { path, counters } of exports) {
    calls.inc({ export: path, kind: 'read' }, counters.reads);
    calls.inc({ export: path, kind: 'write' }, counters.writes);
    calls.inc({ export: path, kind: 'other' }, counters.others);
    calls.inc({ export: path, kind: 'refused' }, counters.refused);
    bytes.inc({ export: path, direction: 'read' }, counters.readBytes);
    bytes.inc({ export: path, direction: 'write' }, counters.writtenBytes);
  }
}

import type { Migration } from '../migrations.ts';

/** Several proxies: who they are, how they join, what hosts could mount from them. */
export const proxyTables: Migration = {
  name: 'proxies',
  async up(query) {
    const { schema } = query;
    await schema
      .createTable('proxies')
      .addColumn('name', 'text', (c) => c.primaryKey())
      .addColumn('kind', 'text', (c) => c.notNull())
      .addColumn('addresses', 'text', (c) => c.notNull())
      .addColumn('call_address', 'text')
      .addColumn('call_port', 'integer')
      .addColumn('fingerprint', 'text')
      .addColumn('next_fingerprint', 'text')
      .addColumn('certificate_end_ms', 'bigint')
      .addColumn('version', 'text')
      .addColumn('wire', 'integer')
      .addColumn('draining', 'integer', (c) => c.notNull())
      .addColumn('labels', 'text', (c) => c.notNull())
      .addColumn('only_for', 'text', (c) => c.notNull())
      .addColumn('never_for', 'text', (c) => c.notNull())
      .addColumn('devices', 'text', (c) => c.notNull())
      .addColumn('status', 'text')
      .addColumn('heartbeat_ms', 'bigint')
      .addColumn('skew_ms', 'bigint')
      .addColumn('enrolled_ms', 'bigint', (c) => c.notNull())
      .execute();
    await schema
      .createTable('proxy_tokens')
      .addColumn('id', 'text', (c) => c.primaryKey())
      .addColumn('secret_hash', 'text', (c) => c.notNull())
      .addColumn('proxy_name', 'text')
      .addColumn('created_ms', 'bigint', (c) => c.notNull())
      .addColumn('expires_ms', 'bigint', (c) => c.notNull())
      .addColumn('used_ms', 'bigint')
      .addColumn('used_by', 'text')
      .addColumn('used_key', 'text')
      .execute();
    await schema
      .createTable('removed_proxies')
      .addColumn('fingerprint', 'text', (c) => c.primaryKey())
      .addColumn('name', 'text', (c) => c.notNull())
      .addColumn('removed_ms', 'bigint', (c) => c.notNull())
      .execute();
    await schema
      .createTable('mounts')
      .addColumn('proxy', 'text', (c) => c.notNull())
      .addColumn('address', 'text', (c) => c.notNull())
      .addColumn('hypervisor_id', 'text', (c) => c.notNull())
      .addColumn('host_id', 'text', (c) => c.notNull())
      .addColumn('cluster_id', 'text')
      .addColumn('ok_ms', 'bigint')
      .addColumn('failed_ms', 'bigint')
      .addColumn('error', 'text')
      .addPrimaryKeyConstraint('mounts_key', ['proxy', 'address', 'hypervisor_id', 'host_id'])
      .execute();
    await schema.alterTable('recoveries').addColumn('proxy', 'text').execute();
    await schema.alterTable('recoveries').addColumn('proxy_address', 'text').execute();
    // Until now there was one proxy, and this was its name.
    await query
      .updateTable('recoveries')
      .set({ proxy: 'local' })
      .where('cloneId', 'is not', null)
      .execute();
  },
};

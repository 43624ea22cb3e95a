/**
 * The driver on the plain simulator (govmomi's, a third party's word), as far as that goes: it has
 * no RemoveDatastore, AnswerVM, or exports, never reads a .vmx, and RelocateVM_Task leaves paths as
 * they were. The whole contract runs on the stand-in (vsphere-contract-stand-in.test.ts).
 */
import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { startPlainVcenter } from '#lab/vcenter/vcenter.ts';
import { temporaryDirectory } from '#lab/world.ts';
import type { ConfigureSpec } from '#src/hypervisors/port.ts';
import { VsphereHypervisor } from '#src/hypervisors/vsphere/driver.ts';
import { systemClock } from '#src/lib/clock.ts';

async function open(context: TestContext, esx = false) {
  const directory = await temporaryDirectory('plain');
  const vcenter = await startPlainVcenter({ directory, esx, clusters: 2, hostsPerCluster: 2 });
  const hypervisor = new VsphereHypervisor({
    url: vcenter.url,
    user: vcenter.user,
    password: async () => vcenter.password,
    trust: { fingerprint: vcenter.fingerprint },
    clock: systemClock,
  });
  context.after(async () => {
    await hypervisor.close();
    await vcenter.stop();
  });
  return { directory, hypervisor };
}

const datastore = {
  name: 'rouse-plain1',
  server: '10.0.0.5',
  path: '/main/Recover-local-plain1',
  nfsPort: 2049,
  mountPort: 2049,
};

const configureSpec: ConfigureSpec = {
  configuration: undefined,
  name: 'woken & <kept>',
  datastore,
  folder: 'woken',
  disks: [{ name: 'scsi0:0', file: 'scsi0:0-flat.vmdk', sizeBytes: 1 << 20 }],
  identity: { keep: false, uuid: '11111111-2222-4333-8444-555555555555', macs: [] },
  connectNetworks: false,
  mark: 'plain1',
};

for (const esx of [false, true]) {
  const what = esx ? 'an ESXi host alone' : 'a vCenter';
  test(`plain simulator: ${what} tests as usable and shows what it has`, async (context) => {
    const { hypervisor } = await open(context, esx);
    const report = await hypervisor.test();
    assert.deepEqual(report.problems, []);
    assert.equal(report.facts['kind'], esx ? 'one ESXi host' : 'vCenter');
    const inventory = await hypervisor.inventory();
    assert.equal(inventory.clusters.length, esx ? 0 : 2);
    assert.equal(inventory.hosts.length, esx ? 1 : 5);
    assert.ok(inventory.hosts.every(({ addresses }) => addresses.length > 0));
    assert.ok(inventory.networks.some(({ name }) => name === 'VM Network'));
    const [machine] = inventory.machines;
    assert.ok(machine !== undefined);
    const detail = await hypervisor.machine(machine.id);
    assert.deepEqual(await hypervisor.machine(machine.name), detail);
    assert.equal(detail.disks[0]?.name, 'scsi0:0');
    assert.match(detail.configuration, /^displayName = /m);
    await assert.rejects(hypervisor.machine('no-such'), { code: 'not-found' });
    await assert.rejects(hypervisor.powerOn('no-such'), { code: 'not-found' });
  });

  test(`plain simulator: ${what} mounts once, registers once, and powers on and off`, async (context) => {
    const { hypervisor, directory } = await open(context, esx);
    const [host] = (await hypervisor.inventory()).hosts;
    assert.ok(host !== undefined);
    const configured = hypervisor.configure(configureSpec);
    const folder = join(directory, datastore.name, 'woken');
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, configured.fileName), configured.text);
    for (const { name } of configured.extraFiles ?? []) await writeFile(join(folder, name), '');
    const mounted = await hypervisor.mountDatastore(host.id, datastore);
    assert.equal((await hypervisor.mountDatastore(host.id, datastore)).id, mounted.id);
    assert.deepEqual([mounted.kind, mounted.hostIds], ['nfs', [host.id]]);
    for (const other of [
      { ...datastore, path: '/other' },
      { ...datastore, name: 'rouse-two' },
    ]) {
      await assert.rejects(hypervisor.mountDatastore(host.id, other), { code: 'already-exists' });
    }
    await assert.rejects(hypervisor.mountDatastore('host-0', datastore), { code: 'not-found' });
    const { name, mark } = configureSpec;
    const spec = { hostId: host.id, name, datastore, folder: 'woken', configured, mark };
    const id = await hypervisor.register(spec);
    assert.equal(await hypervisor.register(spec), id);
    await assert.rejects(hypervisor.register({ ...spec, mark: 'other' }), {
      code: 'already-exists',
    });
    assert.equal(await hypervisor.findMarked(mark), id);
    assert.equal(await hypervisor.findMarked('other'), undefined);
    assert.deepEqual(await hypervisor.datastoreUsers(datastore.name), [id]);
    await assert.rejects(hypervisor.unmountDatastore(host.id, datastore.name), { code: 'busy' });
    await hypervisor.powerOn(id);
    await hypervisor.powerOn(id);
    assert.equal(await hypervisor.powerState(id), 'on');
    await assert.rejects(hypervisor.unregister(id), { code: 'wrong-state' });
    await hypervisor.powerOff(id, 'shutdown', 5_000);
    await hypervisor.powerOff(id, 'off');
    await hypervisor.unregister(id);
    await hypervisor.unregister(id);
    assert.equal(await hypervisor.findMarked(mark), undefined);
  });
}

test('plain simulator: a machine that is not ours is never unregistered', async (context) => {
  const { hypervisor } = await open(context);
  const [foreign] = (await hypervisor.inventory()).machines;
  assert.ok(foreign !== undefined);
  await hypervisor.powerOff(foreign.id, 'off');
  await assert.rejects(hypervisor.unregister(foreign.id), { code: 'wrong-state' });
  assert.equal(await hypervisor.powerState(foreign.id), 'off');
});

test('plain simulator: a preflight names the host that is fit', async (context) => {
  const { hypervisor } = await open(context);
  const [host] = (await hypervisor.inventory()).hosts;
  const report = await hypervisor.preflight({ hostId: host?.id ?? '' });
  assert.deepEqual(report.problems, []);
  const unknown = await hypervisor.preflight({ hostId: 'host-0' });
  assert.equal(unknown.ok, false);
});

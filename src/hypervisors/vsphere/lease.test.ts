import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import { test } from 'node:test';
import { isRouseError } from '../../errors.ts';
import { systemClock } from '../../lib/clock.ts';
import { type FakeCall, fakeVim, fault, reference, told } from '../../testing/fake-vim.ts';
import type { FakeVim } from '../../testing/fake-vim.ts';
import type { BackupPass, NfcAccess } from '../port.ts';
import { VsphereReader } from './reader.ts';

const snapshot = 'snapshot-1';
const disk = (key: number, unit: number, mode = 'persistent') =>
  `<device i:type="VirtualDisk"><key>${key}</key>` +
  `<backing i:type="VirtualDiskFlatVer2BackingInfo"><fileName>[s] w/${key}.vmdk</fileName>` +
  `<diskMode>${mode}</diskMode></backing><controllerKey>1000</controllerKey>` +
  `<unitNumber>${unit}</unitNumber><capacityInKB>64</capacityInKB></device>`;
const hardware =
  '<val i:type="VirtualHardware"><device i:type="ParaVirtualSCSIController"><key>1000</key>' +
  `<busNumber>0</busNumber></device>${disk(2000, 0)}${disk(2001, 1)}</val>`;

interface Url {
  readonly key: string;
  readonly url: string;
  readonly thumbprint?: string;
  readonly isDisk?: boolean;
}

const infoOf = (urls: readonly Url[]) =>
  `<val i:type="HttpNfcLeaseInfo">${urls
    .map(
      ({ key, url, thumbprint = '', isDisk = true }) =>
        `<deviceUrl><key>${key}</key><importKey>${key}</importKey><url>${url}</url>` +
        `<sslThumbprint>${thumbprint}</sslThumbprint><disk>${isDisk}</disk></deviceUrl>`,
    )
    .join('')}<leaseTimeout>300</leaseTimeout></val>`;

const lease = ['HttpNfcLease', 'session[1]lease'] as const;

/** A manager that gives a lease of these downloads. */
function manager(
  urls: readonly Url[],
  get?: (call: FakeCall, response: ServerResponse) => void,
): Promise<FakeVim> {
  const state = told(lease, { state: '<val>ready</val>' });
  return fakeVim(
    {
      RetrievePropertiesEx: [
        told(['VirtualMachineSnapshot', snapshot], { 'config.hardware': hardware }).retrieved,
        told(lease, { info: infoOf(urls) }).retrieved,
      ],
      ExportSnapshot: [reference('returnval', ...lease)],
      WaitForUpdatesEx: [state.updated],
      HttpNfcLeaseProgress: [''],
      HttpNfcLeaseComplete: [''],
      HttpNfcLeaseAbort: [''],
    },
    get,
  );
}

const passOf = (vim: FakeVim, session: BackupPass['session'] = { ticket: 't-1' }): BackupPass => ({
  url: vim.url,
  trust: { fingerprint: vim.fingerprint },
  session,
});
const access = (key: number): NfcAccess => ({ via: 'nfc', snapshot, key });
const unaborted = () => new AbortController().signal;
const serving = (text: string) => (_call: FakeCall, response: ServerResponse) =>
  void response.end(text);

async function textOf(source: AsyncIterable<Uint8Array>): Promise<string> {
  const parts: Uint8Array[] = [];
  for await (const part of source) parts.push(part);
  return Buffer.concat(parts).toString();
}

test('disks are found by controller and unit; * is the manager; what is no disk is passed over', async () => {
  const vim = await manager(
    [
      { key: '/vm-1/ParaVirtualSCSIController0:1', url: 'https://*/nfc/1/b' },
      { key: '/vm-1/nvram', url: 'https://*/nfc/1/nvram', isDisk: false },
      { key: '/vm-1/ParaVirtualSCSIController0:0', url: 'https://*/nfc/1/a' },
    ],
    (call, response) => void response.end(call.name),
  );
  const reader = new VsphereReader(passOf(vim), systemClock);
  const open = await reader.lease([access(2000), access(2001)], unaborted());
  assert.equal(await textOf(open.download(access(2000), unaborted())), 'GET /nfc/1/a');
  assert.equal(await textOf(open.download(access(2001), unaborted())), 'GET /nfc/1/b');
  await open.end('complete');
  await reader.close();
  const names = vim.calls.map(({ name }) => name);
  assert.ok(names.includes('HttpNfcLeaseComplete') && names.includes('Logout'));
  assert.ok(!names.includes('Login'), 'no password is known here');
  await vim.close();
});

test('keys that fit nothing: disks come in the order of the hardware', async () => {
  const vim = await manager(
    ['a', 'b'].map((name) => ({ key: `/vm-1/${name}`, url: `https://*/nfc/1/${name}` })),
    (call, response) => void response.end(call.name),
  );
  const reader = new VsphereReader(passOf(vim), systemClock);
  const open = await reader.lease([access(2001)], unaborted());
  assert.equal(await textOf(open.download(access(2001), unaborted())), 'GET /nfc/1/b');
  await open.end('abort');
  await vim.close();
});

test('a host is believed by the thumbprint that its manager told, or is sent nothing', async () => {
  const host = await fakeVim({}, serving('bytes'));
  const other = host.url.replace('/sdk', '/nfc/1/a').replace('127.0.0.1', 'localhost');
  const tries = [
    [host.thumbprint, 'bytes'],
    [host.thumbprint.toLowerCase().replaceAll(':', ''), 'bytes'],
    [host.fingerprint, 'bytes'],
    [host.thumbprint.replace(/^../, (pair) => (pair === '00' ? '01' : '00')), undefined],
    ['', undefined],
  ] as const;
  for (const [thumbprint, wanted] of tries) {
    const key = '/vm-1/ParaVirtualSCSIController0:0';
    const vim = await manager([{ key, url: other, thumbprint }]);
    const reader = new VsphereReader(passOf(vim), systemClock);
    const open = await reader.lease([access(2000)], unaborted());
    const before = host.calls.length;
    const read = textOf(open.download(access(2000), unaborted()));
    if (wanted === undefined) {
      await assert.rejects(read, (error) => isRouseError(error, 'forbidden'));
      assert.equal(host.calls.length, before, 'nothing was sent');
    } else {
      assert.equal(await read, wanted);
    }
    await open.end('abort');
    await vim.close();
  }
  await host.close();
});

test('a download that stands still, or is cut off, fails; one that is refused says so', async () => {
  const key = '/vm-1/ParaVirtualSCSIController0:0';
  const ends = [
    [(response: ServerResponse) => void response.write('some'), 'time-out'],
    [(response: ServerResponse) => void response.socket?.destroy(), undefined],
    [(response: ServerResponse) => void response.writeHead(404).end(), 'hypervisor-error'],
  ] as const;
  for (const [end, code] of ends) {
    const vim = await manager([{ key, url: 'https://*/nfc/1/a' }], (_call, response) =>
      end(response),
    );
    const reader = new VsphereReader(passOf(vim), systemClock, { silenceMs: 100 });
    const open = await reader.lease([access(2000)], unaborted());
    await assert.rejects(textOf(open.download(access(2000), unaborted())), (error) =>
      isRouseError(error, code),
    );
    await open.end('abort');
    await vim.close();
  }
});

test('a snapshot that somebody removed meanwhile is said to be gone', async () => {
  const vim = await fakeVim({ RetrievePropertiesEx: [fault('ManagedObjectNotFound')] });
  const reader = new VsphereReader(passOf(vim), systemClock);
  await assert.rejects(reader.lease([access(2000)], unaborted()), /somebody removed it/);
  await reader.close();
  await vim.close();
});

test('a ticket that is used up is no refused login: another try with a new pass mends it', async () => {
  const vim = await fakeVim({ CloneSession: [fault('InvalidLogin')] });
  const reader = new VsphereReader(passOf(vim), systemClock);
  await assert.rejects(reader.lease([access(2000)], unaborted()), (error) =>
    isRouseError(error, 'hypervisor-error'),
  );
  await vim.close();
});

test('a shared session is used as it is, and nobody is logged out of it', async () => {
  const vim = await manager(
    [{ key: '/vm-1/ParaVirtualSCSIController0:0', url: 'https://*/nfc/1/a' }],
    serving('bytes'),
  );
  const cookie = 'vmware_soap_session="theirs"';
  const reader = new VsphereReader(passOf(vim, { cookie }), systemClock);
  const open = await reader.lease([access(2000)], unaborted());
  await open.end('complete');
  await reader.close();
  const exported = vim.calls.find(({ name }) => name === 'ExportSnapshot');
  assert.equal(exported?.headers.cookie, cookie);
  const names = vim.calls.map(({ name }) => name);
  assert.ok(!names.includes('Logout') && !names.includes('CloneSession'));
  await vim.close();
});

/** On the plain simulator: a vCenter that is there, with its own certificate and login. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join } from 'node:path';
import { test } from 'node:test';
import { checkServerIdentity, type TLSSocket } from 'node:tls';
import { eventually, Processes } from '../processes.ts';
import { temporaryDirectory } from '../world.ts';
import { startPlainVcenter, type Vcenter } from './vcenter.ts';

interface Answer {
  readonly status: number;
  readonly body: string;
  readonly fingerprint: string;
}

async function soap(vcenter: Pick<Vcenter, 'url' | 'certificate'>, body: string): Promise<Answer> {
  const ca = await readFile(vcenter.certificate);
  const text = `<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>${body}</Body></Envelope>`;
  return new Promise((resolve, reject) => {
    const options = { method: 'POST', ca, checkServerIdentity, agent: false as const };
    const call = request(vcenter.url, options, async (response) => {
      const { fingerprint256 } = (response.socket as TLSSocket).getPeerCertificate();
      let said = '';
      for await (const chunk of response) said += String(chunk);
      resolve({ status: response.statusCode ?? 0, body: said, fingerprint: fingerprint256 });
    });
    call.once('error', reject).end(text);
  });
}

const escaped = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
const content = `<RetrieveServiceContent xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this></RetrieveServiceContent>`;
const loginAs = (user: string, password: string) =>
  `<Login xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this>` +
  `<userName>${escaped(user)}</userName><password>${escaped(password)}</password></Login>`;

test('a plain vCenter answers with its own certificate, knows its user and leaves nothing', async () => {
  const directory = await temporaryDirectory('vcenter');
  const vcenter = await startPlainVcenter({ directory, clusters: 2, hostsPerCluster: 2 });
  const about = await soap(vcenter, content);
  assert.equal(about.status, 200);
  assert.match(about.body, /<apiType>VirtualCenter<\/apiType>/);
  assert.equal(about.fingerprint, vcenter.fingerprint);
  const wrong = await soap(vcenter, loginAs(vcenter.user, 'wrong'));
  assert.match(wrong.body, /InvalidLogin/);
  const right = await soap(vcenter, loginAs(vcenter.user, vcenter.password));
  assert.match(right.body, /<LoginResponse/);
  await vcenter.stop();
  await assert.rejects(soap(vcenter, content), /ECONNREFUSED/);
  assert.equal(existsSync(join(directory, 'vcenter-tmp')), false);
});

test('who starts a vCenter and is killed leaves none', async () => {
  const directory = await temporaryDirectory('killed');
  const script = `import { startPlainVcenter } from ${JSON.stringify(join(import.meta.dirname, 'vcenter.ts'))};
    const { url } = await startPlainVcenter({ directory: ${JSON.stringify(directory)} });
    console.log(url);
    setInterval(() => undefined, 1000);`;
  const processes = new Processes();
  const child = processes.start(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  assert.ok(child.stdout !== null);
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const url = String(line).trim();
  const certificate = join(directory, 'vcenter.pem');
  const vcenter = { url, certificate } as const;
  assert.equal((await soap(vcenter, content)).status, 200);
  child.kill('SIGKILL');
  await eventually('its end', () =>
    soap(vcenter, content).then(
      () => undefined,
      () => true,
    ),
  );
});

test('a plain ESX host answers as one', async () => {
  const vcenter = await startPlainVcenter({
    directory: await temporaryDirectory('esx'),
    esx: true,
  });
  const about = await soap(vcenter, content);
  assert.match(about.body, /<apiType>HostAgent<\/apiType>/);
  await vcenter.stop();
});

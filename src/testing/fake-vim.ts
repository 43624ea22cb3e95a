import { X509Certificate } from 'node:crypto';
import * as https from 'node:https';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { testCertificate, testKey } from './tls-certificate.ts';

/** A manager of a few scripted answers, over real TLS; what it is not told of it refuses. */
export interface FakeVim {
  readonly url: string;
  readonly fingerprint: string;
  /** SHA-1, as leases tell it. */
  readonly thumbprint: string;
  /** Methods and `GET path` in order, with what was sent. */
  readonly calls: readonly FakeCall[];
  close(): Promise<void>;
}

export interface FakeCall {
  readonly name: string;
  readonly body: string;
  readonly headers: IncomingMessage['headers'];
}

/** The inner XML of `<…Response>`; `fault('Type')`; answers by turns, the last one stays. */
export type FakeAnswers = Readonly<Record<string, readonly string[]>>;

export const fault = (type: string, words = 'no') =>
  `<s:Fault><faultcode>ServerFaultCode</faultcode><faultstring>${words}</faultstring>` +
  `<detail><${type}Fault i:type="${type}"/></detail></s:Fault>`;

export const reference = (name: string, type: string, id: string) =>
  `<${name} type="${type}">${id}</${name}>`;

export async function fakeVim(
  answers: FakeAnswers,
  get: (call: FakeCall, response: ServerResponse) => void = (_call, response) => {
    response.writeHead(404).end();
  },
): Promise<FakeVim> {
  const calls: FakeCall[] = [];
  const turns = new Map<string, number>();
  const answer = (name: string, response: ServerResponse) => {
    const all = { ...usual, ...answers }[name] ?? [fault('NotSupported', `no ${name} here`)];
    const turn = turns.get(name) ?? 0;
    turns.set(name, turn + 1);
    const text = all[Math.min(turn, all.length - 1)] ?? '';
    const isFault = text.startsWith('<s:Fault>');
    const inner = isFault ? text : `<${name}Response>${text}</${name}Response>`;
    response.writeHead(isFault ? 500 : 200, {
      'Content-Type': 'text/xml; charset=utf-8',
      ...(/^(?:Login|CloneSession)$/u.test(name) && !isFault
        ? { 'Set-Cookie': `vmware_soap_session="${name}-${turn}"; Path=/` }
        : {}),
    });
    response.end(
      '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"' +
        ` xmlns:i="http://www.w3.org/2001/XMLSchema-instance"><s:Body>${inner}</s:Body></s:Envelope>`,
    );
  };
  const server = https.createServer(
    { cert: testCertificate, key: testKey },
    (request, response) => {
      let body = '';
      request.setEncoding('utf8').on('data', (part: string) => (body += part));
      request.once('end', () => {
        const method = /<soapenv:Body><(\w+) /u.exec(body)?.[1];
        const name = method ?? `${request.method} ${request.url}`;
        const call = { name, body, headers: request.headers };
        calls.push(call);
        if (method === undefined) get(call, response);
        else answer(method, response);
      });
    },
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const { fingerprint256, fingerprint } = new X509Certificate(testCertificate);
  return {
    url: `https://127.0.0.1:${port}/sdk`,
    fingerprint: fingerprint256,
    thumbprint: fingerprint,
    calls,
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const usual: FakeAnswers = {
  RetrieveServiceContent: [
    `<returnval>${reference('rootFolder', 'Folder', 'group-d1')}` +
      `${reference('propertyCollector', 'PropertyCollector', 'pc')}` +
      `${reference('sessionManager', 'SessionManager', 'sm')}` +
      '<about><apiType>VirtualCenter</apiType><apiVersion>7.0</apiVersion></about></returnval>',
  ],
  Login: ['<returnval><key>k</key><userName>rouse</userName></returnval>'],
  CloneSession: ['<returnval><key>c</key><userName>rouse</userName></returnval>'],
  Logout: [''],
  CreatePropertyCollector: [reference('returnval', 'PropertyCollector', 'pc-1')],
  DestroyPropertyCollector: [''],
  CreateFilter: [reference('returnval', 'PropertyFilter', 'f-1')],
};

/** An answer to RetrievePropertiesEx or WaitForUpdatesEx about one object. */
export function told(
  object: readonly [type: string, id: string],
  values: Readonly<Record<string, string>>,
): { readonly retrieved: string; readonly updated: string } {
  const obj = reference('obj', ...object);
  const entries = Object.entries(values);
  const props = entries.map(([name, val]) => `<propSet><name>${name}</name>${val}</propSet>`);
  const changes = entries.map(
    ([name, val]) => `<changeSet><name>${name}</name><op>assign</op>${val}</changeSet>`,
  );
  return {
    retrieved: `<returnval><objects>${obj}${props.join('')}</objects></returnval>`,
    updated:
      '<returnval><version>1</version><filterSet>' +
      `<objectSet><kind>modify</kind>${obj}${changes.join('')}</objectSet></filterSet></returnval>`,
  };
}

/* The null GPU's driver, which Triton and PyTorch load by name, and as much of NVML as they ask for. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <stdlib.h>
#include <stdio.h>
typedef int E; 
void nullgpu_count(int*,const char*);
void* nullgpu_named(const char*); void nullgpu_launch(const void*);
#define COUNT(n) do{ static int id=-1; nullgpu_count(&id,n);}while(0)
extern E cudaDeviceGetAttribute(int*,int,int); extern E cudaMalloc(void**,size_t); extern E cudaGetDevice(int*);
E cuInit(unsigned f){return 0;}
E cuDriverGetVersion(int*v){*v=13000;return 0;}
E cuDeviceGet(int*d,int o){*d=o;return 0;}
E cuDeviceGetCount(int*n){char*e=getenv("NULLGPU_COUNT");*n=e?atoi(e):1;return 0;}
E cuDeviceGetAttribute(int*v,int a,int d){return cudaDeviceGetAttribute(v,a,d);} 
E cuDevicePrimaryCtxGetState(int d,unsigned*f,int*a){if(f)*f=0;*a=1;return 0;}
E cuDevicePrimaryCtxRetain(void**c,int d){*c=(void*)8;return 0;}
E cuCtxGetCurrent(void**c){*c=(void*)8;return 0;}
E cuCtxSetCurrent(void*c){return 0;}
E cuCtxGetDevice(int*d){return cudaGetDevice(d);}
E cuCtxPushCurrent_v2(void*c){return 0;}
E cuCtxPopCurrent_v2(void**c){return 0;}
E cuCtxPushCurrent(void*c){return 0;}
E cuCtxPopCurrent(void**c){return 0;}
E cuGetErrorString(E e,const char**s){*s="fake";return 0;}
E cuGetErrorName(E e,const char**s){*s="fake";return 0;}
E cuModuleLoadData(void**m,const void*i){*m=(void*)64;return 0;}
E cuModuleLoadDataEx(void**m,const void*i,unsigned n,void*o,void*v){*m=(void*)64;return 0;}
E cuModuleLoad(void**m,const char*f){*m=(void*)64;return 0;}
E cuModuleUnload(void*m){return 0;}
E cuModuleGetFunction(void**f,void*m,const char*n){*f=nullgpu_named(n);return 0;}
E cuLibraryLoadData(void**l){*l=(void*)64;return 0;}
E cuLibraryGetKernel(void**k,void*l,const char*n){*k=nullgpu_named(n);return 0;}
E cuFuncGetAttribute(int*v,int a,void*f){*v=(a==0)?1024:0;return 0;}
E cuFuncSetAttribute(void*f,int a,int v){return 0;}
E cuFuncSetCacheConfig(void*f,int c){return 0;}
E cuLaunchKernel(void*f){nullgpu_launch(f);return 0;}
E cuLaunchKernelEx(void*c,void*f){nullgpu_launch(f);return 0;}
E cuLaunchCooperativeKernel(void*f){nullgpu_launch(f);return 0;}
E cuOccupancyMaxActiveBlocksPerMultiprocessor(int*n,void*f,int b,size_t s){*n=2;return 0;}
E cuOccupancyMaxActiveClusters(int*n){*n=16;return 0;}
E cuPointerGetAttribute(void*data,int attr,uint64_t p){ if(attr==3)*(uint64_t*)data=p;
  else if(attr==2)*(unsigned*)data=2; else if (attr==9)*(int*)data=0; else *(uint64_t*)data=0; return 0;}
E cuMemGetAddressRange(void*b,size_t*s,uint64_t p){*(uint64_t*)b=p;*s=1<<20;return 0;}
E cuMemGetAddressRange_v2(void*b,size_t*s,uint64_t p){*(uint64_t*)b=p;*s=1<<20;return 0;}
E cuTensorMapEncodeTiled(){return 0;}
E cuLinkCreate_v2(){return 0;}
E cuLinkAddData_v2(){return 0;}
E cuLinkComplete(){return 0;}
E cuStreamSynchronize(void*s){COUNT("cuStreamSynchronize");return 0;}
E cuGetProcAddress_v2(const char*n,void**f,int v,uint64_t fl,int*q);
  E cuGetProcAddress(const char*n,void**f,int v,uint64_t fl){return cuGetProcAddress_v2(n,f,v,fl,0);} 
static E nothing(void){return 0;}
#include <dlfcn.h>
void* nullgpu_driver(const char*n){ void*p=dlsym(RTLD_DEFAULT,n); return p?p:(void*)nothing; }
E cuGetProcAddress_v2(const char*n,void**f,int v,uint64_t fl,int*q){*f=nullgpu_driver(n); if(q)*q=0; return 0;}
E cuCtxSetLimit(int a,size_t v){return 0;}
E cuCtxGetLimit(size_t*v,int a){*v=0;return 0;}
E cuPointerGetAttributes(unsigned n,int*at,void**data,uint64_t p){ for(unsigned i=0;i<n;
  i++) cuPointerGetAttribute(data[i],at[i],p); return 0;}
/* nvml */
E nvmlInit(void){return 0;}
E nvmlInit_v2(void){return 0;}
E nvmlShutdown(void){return 0;}
E nvmlDeviceGetCount_v2(unsigned*n){int k;cuDeviceGetCount(&k);*n=k;return 0;}
